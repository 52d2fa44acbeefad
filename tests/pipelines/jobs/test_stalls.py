"""Tasks that make no progress: their process is killed, and only the row that hangs is given up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ops.config import ConfigError
from pipelines.flags import stall_seconds
from pipelines.jobs import local
from pipelines.jobs.fork_server import ForkServer, fork_server
from pipelines.jobs.queue import JobError
from pipelines.jobs.run import run_tasks
from pipelines.jobs.stalls import StallWatch

LIMIT = 0.3  # seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1", 1)]
)
def test_durations(text: str, seconds: float) -> None:
    assert stall_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0.5s", "-3", "10 m", "ten", "1d", "nan", "1e3", "١٠"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--stall-timeout must be a second or more, as .* found"):
        stall_seconds(text)


def test_time_in_which_the_driver_was_stopped_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = StallWatch(600)
    now[0] += 3600  # Ctrl-Z, and fg an hour later
    watch.tick()
    assert not watch.is_stalled(0.0)
    for _ in range(600):
        now[0] += 1
        watch.tick()
    assert watch.is_stalled(0.0)
    assert not watch.is_stalled(watch.now - 599)
    assert not StallWatch(None).is_stalled(-1e9)


class Hanging:
    """A worker that reads a FIFO nobody writes for the rows in `hangs` not yet in `given_up`."""

    def __init__(self, folder: Path, hangs: tuple[int, ...], times: int = 10**9) -> None:
        self.folder, self.hangs, self.times = folder, hangs, times

    def run(self, rows: range) -> int:
        for row in rows:
            begun = self.folder / f"begun {row}"
            with open(begun, "a") as file:
                file.write("x")
            hangs = row in self.hangs and not (self.folder / f"given up {row}").exists()
            if hangs and len(begun.read_text()) <= self.times:
                open(self.folder / "fifo").close()
        return len(rows)


class Slow:
    """A worker whose tasks take longer than the limit, and which shows that it works."""

    def __init__(self, shows: str) -> None:
        self.done = 0
        setattr(self, shows, lambda: self.done)

    def run(self, task: int) -> int:
        for _ in range(10):
            time.sleep(LIMIT / 4)
            self.done += 1
        return task


def halves(rows: range) -> list[range]:
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]] if len(rows) > 1 else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.fixture
def server() -> Iterator[None]:
    with fork_server(local._serve_driver):
        yield


@pytest.mark.usefixtures("server")
class TestInAChildProcess:
    @pytest.mark.parametrize("overlap", [1, 2])
    def test_only_the_row_that_hangs_is_given_up(self, folder: Path, overlap: int) -> None:
        results: dict[range, int] = {}
        given_up: list[tuple[range, bool]] = []

        def give_up(rows: range, stalled: bool) -> None:
            given_up.append((rows, stalled))
            (folder / f"given up {rows[0]}").touch()

        tasks = [range(3), range(3, 7), range(7, 9)]
        run_tasks(
            tasks,
            partial(Hanging, folder, (4,)),
            on_result=results.setdefault,
            overlap=overlap,
            attempts=2,
            split=halves,
            give_up=give_up,
            stall_timeout=LIMIT,
        )
        assert given_up == [(range(4, 5), True)]
        assert results == {rows: len(rows) for rows in tasks}

    def test_a_read_that_hangs_once_costs_an_attempt(self, folder: Path) -> None:
        results: dict[range, int] = {}
        hanging = partial(Hanging, folder, (1,), times=2)
        run_tasks([range(2)], hanging, on_result=results.setdefault, stall_timeout=LIMIT)
        assert results == {range(2): 2}
        assert (folder / "begun 1").read_text() == "xxx"

    def test_without_split_the_last_attempt_ends_the_run(self, folder: Path) -> None:
        with pytest.raises(
            JobError, match=r"failed 2 times.*no progress for 0\.3 seconds .* See --stall-timeout"
        ):
            run_tasks(
                [range(2)],
                partial(Hanging, folder, (1,)),
                on_result=print,
                attempts=2,
                stall_timeout=LIMIT,
            )

    @pytest.mark.parametrize("shows", ["progress", "heartbeat"])
    def test_a_slow_worker_that_makes_progress_is_left_alone(self, shows: str) -> None:
        results: dict[int, int] = {}
        slow = partial(Slow, shows)
        run_tasks([7], slow, on_result=results.setdefault, attempts=1, stall_timeout=LIMIT)
        assert results == {7: 7}

    def test_a_process_that_cannot_be_killed_ends_the_run(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pids: list[int] = []

        def keep_alive(server: ForkServer) -> None:  # as the system does, while a disk is awaited
            assert server._worker is not None
            pids.append(server._worker)

        monkeypatch.setattr(ForkServer, "kill", keep_alive)
        monkeypatch.setattr(local, "KILL_SECONDS", LIMIT)
        monkeypatch.setattr(local, "STOP_SECONDS", LIMIT)
        with pytest.raises(JobError, match="Its process does not die either"):
            run_tasks(
                [range(2)],
                partial(Hanging, folder, (1,)),
                on_result=print,
                stall_timeout=LIMIT,
            )
        assert len(pids) == 2  # by the run, and when it ended
        os.kill(pids[0], signal.SIGKILL)

    def test_an_interrupt_does_not_wait_for_a_read_that_hangs(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt() -> None:
            deadline = time.monotonic() + 60
            while not (folder / "begun 1").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(local, "STOP_SECONDS", LIMIT)
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            run_tasks([range(2)], partial(Hanging, folder, (1,)), on_result=print)


def test_a_task_of_this_process_may_take_longer() -> None:
    results: dict[int, int] = {}
    slow = partial(Slow, "nothing of it")
    run_tasks([7], slow, on_result=results.setdefault, attempts=1, stall_timeout=LIMIT)
    assert results == {7: 7}
