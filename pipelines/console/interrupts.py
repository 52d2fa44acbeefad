"""Ctrl-C, SIGTERM and SIGHUP: as an exception, or noted until a loop can stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end; `exit_code` is what shells report for it."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def interrupts_raised() -> Iterator[None]:
    """Raise Interrupted in the body on Ctrl-C, SIGTERM and SIGHUP."""

    came: list[int] = []

    def interrupt(number: int) -> None:
        came.append(number)
        raise Interrupted(number)

    with _signals_handled(interrupt), _named_for(came):
        yield


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C, SIGTERM or SIGHUP came; a second one raises
    Interrupted at once.

    A KeyboardInterrupt that the body raises after the first becomes the Interrupted of that signal.
    Outside the main thread, which receives no signals, the function always returns False.
    """
    noted: list[int] = []

    def note(number: int) -> None:
        if noted:
            raise Interrupted(number)
        noted.append(number)

    with _signals_handled(note), _named_for(noted):
        yield lambda: bool(noted)


@contextmanager
def _named_for(came: list[int]) -> Iterator[None]:
    """Raise the Interrupted of the first signal that came in place of a KeyboardInterrupt."""
    try:
        yield
    except KeyboardInterrupt:  # Ray raises one of its own in place of what a handler raised
        if came:
            raise Interrupted(came[0]) from None
        raise


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers of the SIGNALS after the body, which starts a library with its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def _signals_handled(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of each of the SIGNALS that arrives in the body."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            act(number)
        else:  # a forked child inherits the handler; it should end as other processes do
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    # One that the process was started to ignore, as nohup does, stays ignored.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number in SIGNALS if before[number] != signal.SIG_IGN]
    try:
        for number in caught:
            signal.signal(number, handle)
        yield
    finally:
        _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    """Set the handlers again; None stands for one of a C library, which cannot be."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
