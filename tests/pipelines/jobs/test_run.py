"""run_tasks: every task gives exactly one result, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ops.config import ConfigError
from ops.transient_errors import TransientError
from pipelines.jobs import actors, local
from pipelines.jobs.fork_server import fork_server
from pipelines.jobs.run import JobError, run_tasks


class Doubler:
    """A worker that leaves a mark for each task it begins and fails as the task says."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def run(self, task: tuple[int, str]) -> int:
        number, failure = task
        mark = self.marks / f"{number}"
        first_time = not mark.exists()
        with open(mark, "a") as file:
            file.write("x")
        if failure == "always dies" or (failure == "dies once" and first_time):
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == "raises" or (failure == "raises once" and first_time):
            raise RuntimeError("worker trouble")
        if failure == "user":
            raise ConfigError("the user's mistake")
        return 2 * number


def sendable(make_worker: Callable[[], Any]) -> Callable[[], Any]:
    """`make_worker`, to be pickled by value: Ray's workers cannot import this file."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return make_worker


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not appear")
        time.sleep(0.01)


def run(marks: Path, tasks: list[tuple[int, str]], workers: int) -> dict[int, int]:
    results: dict[int, int] = {}

    def keep(task: tuple[int, str], result: int) -> None:
        assert task[0] not in results
        results[task[0]] = result

    run_tasks(tasks, sendable(partial(Doubler, marks)), on_result=keep, workers=workers)
    return results


class Meeting:
    """A worker whose tasks end only while another one runs in the same worker."""

    def __init__(self) -> None:
        self.others = threading.Barrier(2, timeout=60)
        self.stopped = False

    def run(self, task: int) -> int:
        self.others.wait()
        return os.getpid()

    def stop(self) -> None:
        self.stopped = True


class Reporter:
    """A worker whose task ends only when the driver has had its progress."""

    def __init__(self, reported: Path) -> None:
        self.reported = reported
        self.at = 0

    def run(self, task: int) -> int:
        self.at = task
        wait_for(self.reported)
        return task

    def progress(self) -> int:
        return self.at

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("count", [0, 1, 5])
def test_tasks_run_in_this_process(tmp_path: Path, count: int) -> None:
    tasks = [(number, "") for number in range(count)]
    assert run(tmp_path, tasks, 0) == {number: 2 * number for number in range(count)}


def test_errors_in_this_process_are_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="worker trouble"):
        run(tmp_path, [(0, "raises")], 0)


def test_a_worker_runs_two_tasks_at_once() -> None:
    worker = Meeting()
    results: list[int] = []
    run_tasks(range(6), lambda: worker, on_result=lambda _, pid: results.append(pid), overlap=2)
    assert results == [os.getpid()] * 6
    assert worker.stopped


def test_an_exception_stops_the_worker_and_ends_the_run() -> None:
    class Stoppable:
        def __init__(self) -> None:
            self.stopped = threading.Event()

        def run(self, task: str) -> None:
            if task == "raises":
                raise RuntimeError("worker trouble")
            assert self.stopped.wait(60)

        def stop(self) -> None:
            self.stopped.set()

    with pytest.raises(RuntimeError, match="worker trouble"):
        run_tasks(["waits", "raises", "never"], Stoppable, on_result=print, overlap=2, attempts=1)


def test_ctrl_c_stops_the_threads_of_this_process() -> None:
    class Endless:
        def __init__(self) -> None:
            self.stopped = threading.Event()

        def run(self, task: int) -> None:
            signal.raise_signal(signal.SIGINT)  # wakes the main thread, which waits
            assert self.stopped.wait(60)

        def stop(self) -> None:
            self.stopped.set()

    with pytest.raises(KeyboardInterrupt):
        run_tasks([0, 1, 2], Endless, on_result=print, overlap=2)


def report(tmp_path: Path, workers: int) -> list[list[int]]:
    """The calls of on_progress with two workers, or one, that wait until all have reported."""
    calls: list[list[int]] = []

    def on_progress(states: list[int]) -> None:
        calls.append(states)
        if sorted(states) == sorted(range(7, 7 + max(1, workers))):
            (tmp_path / "reported").touch()

    run_tasks(
        list(range(7, 7 + max(1, workers))),
        sendable(partial(Reporter, tmp_path / "reported")),
        on_result=lambda task, result: None,
        workers=workers,
        overlap=2 if workers == 0 else 1,
        on_progress=on_progress,
    )
    return calls


def test_progress_of_this_process_is_reported(tmp_path: Path) -> None:
    assert [7] in report(tmp_path, 0)


def halves(rows: range) -> list[range]:
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]] if len(rows) > 1 else []


class Eater:
    """A worker that dies of the rows in `poison` until each has a file in `given_up`."""

    def __init__(self, given_up: Path, poison: tuple[int, ...]) -> None:
        self.given_up, self.poison = given_up, poison

    def run(self, rows: range) -> int:
        if any(row in rows and not (self.given_up / str(row)).exists() for row in self.poison):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(rows)


class Stubborn:
    """A worker whose task ends only when it is stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stopped = folder, threading.Event()

    def run(self, task: int) -> int:
        (self.folder / "begun").touch()
        assert self.stopped.wait(60)
        (self.folder / "ended").touch()
        return task

    def stop(self) -> None:
        self.stopped.set()


def assert_one_row_is_given_up(
    folder: Path, make_worker: Callable[[], Any], *, workers: int = 0, overlap: int
) -> None:
    """Run three tasks, of which row 4 kills its worker; only that row lacks a result of its own."""
    results: list[tuple[range, int]] = []
    given_up: list[tuple[range, bool]] = []

    def give_up(rows: range, stalled: bool) -> None:
        given_up.append((rows, stalled))
        (folder / str(rows[0])).touch()

    run_tasks(
        [range(3), range(3, 7), range(7, 9)],
        make_worker,
        on_result=lambda rows, count: results.append((rows, count)),
        workers=workers,
        overlap=overlap,
        split=halves,
        give_up=give_up,
    )
    assert given_up == [(range(4, 5), False)]
    expected = [(range(3), 3), (range(3, 7), 4), (range(7, 9), 2)]
    assert sorted(results, key=lambda result: result[0][0]) == expected


class TestInAChildProcess:
    @pytest.fixture(autouse=True)
    def server(self) -> Iterator[None]:
        with fork_server(local._serve_driver):
            yield

    def test_results_are_those_of_this_process(self, tmp_path: Path) -> None:
        tasks = [(number, "") for number in range(9)]
        assert run(tmp_path, tasks, 0) == {number: 2 * number for number in range(9)}

    def test_a_death_is_an_attempt(self, tmp_path: Path) -> None:
        tasks = [(n, {1: "dies once", 3: "raises once"}.get(n, "")) for n in range(6)]
        assert run(tmp_path, tasks, 0) == {number: 2 * number for number in range(6)}
        assert (tmp_path / "1").read_text() == "xx"

    @pytest.mark.parametrize("failure", ["always dies", "raises"])
    def test_a_task_has_three_attempts(self, tmp_path: Path, failure: str) -> None:
        with pytest.raises(JobError, match=r"Task \(1, .* failed 3 times"):
            run(tmp_path, [(0, ""), (1, failure), (2, "")], 0)
        assert (tmp_path / "1").read_text() == "xxx"

    def test_user_error_ends_the_run_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the user's mistake"):
            run(tmp_path, [(0, "user")], 0)
        assert (tmp_path / "0").read_text() == "x"

    @pytest.mark.parametrize("overlap", [1, 2])
    def test_a_task_that_kills_is_halved_until_one_row_is_given_up(
        self, tmp_path: Path, overlap: int
    ) -> None:
        assert_one_row_is_given_up(tmp_path, partial(Eater, tmp_path, (4,)), overlap=overlap)

    def test_workers_that_die_at_the_start_are_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "LOST_STARTS", 3)
        with pytest.raises(JobError, match=r"do not start: .*\(SIGTERM\)"):
            run_tasks([1], dying, on_result=print)

    def test_progress_is_reported(self, tmp_path: Path) -> None:
        assert [7] in report(tmp_path, 0)

    def test_ctrl_c_lets_the_worker_end(self, tmp_path: Path) -> None:
        def interrupt() -> None:
            wait_for(tmp_path / "begun")
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            run_tasks([0], partial(Stubborn, tmp_path), on_result=print)
        assert (tmp_path / "ended").exists()


def dying() -> Doubler:
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError


class Flaky:
    """A worker that cannot read now, so many times."""

    def __init__(self, times: int) -> None:
        self.times, self.calls = times, 0

    def run(self, task: int) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise TransientError("a.jpg cannot be read now")
        return task


def test_transient_errors_are_attempts_in_this_process() -> None:
    results: list[int] = []
    run_tasks([5], partial(Flaky, 2), on_result=lambda _, result: results.append(result))
    assert results == [5]
    with pytest.raises(TransientError, match="cannot be read now"):
        run_tasks([5], partial(Flaky, 3), on_result=print)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
class TestOnRay:
    def test_actors_give_the_results_of_this_process(self, tmp_path: Path) -> None:
        tasks = [(number, "") for number in range(9)]
        assert run(tmp_path, tasks, 2) == {number: 2 * number for number in range(9)}
        assert {path.read_text() for path in tmp_path.iterdir()} == {"x"}

    def test_a_dead_actors_tasks_are_run_by_another(self, tmp_path: Path) -> None:
        tasks = [(n, {1: "dies once", 3: "raises once"}.get(n, "")) for n in range(6)]
        assert run(tmp_path, tasks, 2) == {number: 2 * number for number in range(6)}
        assert (tmp_path / "1").read_text() == "xx"

    @pytest.mark.parametrize(
        ("failure", "marks"),
        [
            # Each death costs a start; in a child process they are tried in every run.
            pytest.param("always dies", "xxxx", marks=pytest.mark.slow),
            ("raises", "xxx"),
        ],
    )
    def test_a_task_has_three_attempts(self, tmp_path: Path, failure: str, marks: str) -> None:
        with pytest.raises(JobError, match=r"Task \(1, .* failed 3 times"):
            run(tmp_path, [(0, ""), (1, failure), (2, "")], 1)
        # A death while two tasks run counts for neither; an exception belongs to one task.
        assert (tmp_path / "1").read_text() == marks

    def test_user_error_ends_the_run_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the user's mistake"):
            run(tmp_path, [(0, "user")], 1)
        assert (tmp_path / "0").read_text() == "x"

    def test_workers_that_cannot_start_are_reported(self, tmp_path: Path) -> None:
        def broken() -> Doubler:
            raise OSError("no weights here")

        with pytest.raises(JobError, match="no weights here"):
            run_tasks([1], broken, on_result=print, workers=1, attempts=2)

    def test_workers_that_die_at_the_start_are_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def dying() -> Doubler:
            with open(tmp_path / "starts", "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
            return Doubler(tmp_path)

        monkeypatch.setattr(actors, "LOST_STARTS", 2)
        with pytest.raises(JobError, match="do not start; the last time: the worker's process"):
            run_tasks([1], sendable(dying), on_result=print, workers=1)
        assert (tmp_path / "starts").read_text() == "xx"

    def test_user_error_at_the_start_of_a_worker_ends_the_run_at_once(self, tmp_path: Path) -> None:
        def mistaken() -> Doubler:
            with open(tmp_path / "starts", "a") as file:
                file.write("x")
            raise ConfigError("no such tokenizer")

        with pytest.raises(ConfigError, match="no such tokenizer"):
            run_tasks([1], sendable(mistaken), on_result=print, workers=1)
        assert (tmp_path / "starts").read_text() == "x"

    @pytest.mark.slow  # ten starts; encode's image that kills is halved on Ray in every run
    def test_task_that_kills_is_halved_until_one_row_is_given_up(self, tmp_path: Path) -> None:
        eater = sendable(partial(Eater, tmp_path, (4,)))
        assert_one_row_is_given_up(tmp_path, eater, workers=2, overlap=2)

    def test_an_actor_runs_two_tasks_at_once(self) -> None:
        pids: list[int] = []
        run_tasks(
            range(4),
            sendable(Meeting),
            on_result=lambda _, pid: pids.append(pid),
            workers=1,
            overlap=2,
        )
        assert len(pids) == 4
        assert len(set(pids)) == 1

    def test_progress_of_every_actor_is_reported(self, tmp_path: Path) -> None:
        assert [7, 8] in [sorted(states) for states in report(tmp_path, 2)]
