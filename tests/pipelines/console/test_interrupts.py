"""Ctrl-C, SIGTERM and SIGHUP in a command and in a loop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pipelines.console import interrupts_noted, run_command, signal_handlers_kept
from pipelines.console.interrupts import SIGNALS, Interrupted

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@dataclass(frozen=True)
class Flags:
    """Does a thing."""


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize(("number", "code"), EXIT_CODES.items())
def test_signal_ends_a_command_with_its_exit_code(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def run(flags: Flags) -> int:
        try:
            signal.raise_signal(number)
            return 0
        finally:
            cleaned.append(True)

    assert run_command(Flags, run, [], "pipelines.thing") == code
    assert cleaned
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"


@pytest.mark.parametrize(("number", "code"), EXIT_CODES.items())
def test_loop_stops_where_it_can_and_the_command_ends_with_the_signals_code(
    number: int, code: int
) -> None:
    done = []

    def run(flags: Flags) -> int:
        with interrupts_noted() as interrupted:
            for step in range(10):
                if step == 3:
                    signal.raise_signal(number)
                done.append(step)
                if interrupted():
                    raise KeyboardInterrupt
        return 0

    assert run_command(Flags, run, [], "pipelines.thing") == code
    assert done == [0, 1, 2, 3]


def test_signal_keeps_its_code_where_a_library_raises_its_own_interrupt() -> None:
    def run(flags: Flags) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # as ray.get does
        return 0

    assert run_command(Flags, run, [], "pipelines.thing") == 143


@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_interrupts_at_once(second: int) -> None:
    def run_on() -> None:
        with interrupts_noted() as interrupted:
            signal.raise_signal(signal.SIGTERM)
            assert interrupted()
            signal.raise_signal(second)
            pytest.fail("the second one should have stopped this")

    with pytest.raises(Interrupted) as raised:
        run_on()
    assert raised.value.exit_code == EXIT_CODES[signal.SIGTERM]


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a command
    try:
        with interrupts_noted() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_forked_child_dies_of_the_signal() -> None:
    with interrupts_noted():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_other_threads_note_nothing() -> None:
    noted = []

    def run() -> None:
        with interrupts_noted() as interrupted:
            noted.append(interrupted())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert noted == [False]


def test_handlers_of_a_library_are_replaced_again() -> None:
    with interrupts_noted() as interrupted:
        with signal_handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does when it starts
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
