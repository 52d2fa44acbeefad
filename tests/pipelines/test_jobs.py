"""Every task runs to its end exactly once for the caller, whatever happens to workers."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from ops.config import ConfigError
from pipelines.jobs import JobError, run_tasks


class Doubler:
    """A worker that leaves a mark for each task it begins and obeys tasks that name a mishap."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def run(self, task: tuple[int, str]) -> int:
        number, mishap = task
        mark = self.marks / f"{number}"
        first_time = not mark.exists()
        with open(mark, "a") as file:
            file.write("x")
        if mishap == "always dies" or (mishap == "dies once" and first_time):
            os.kill(os.getpid(), signal.SIGKILL)
        if mishap == "raises" or (mishap == "raises once" and first_time):
            raise RuntimeError("worker trouble")
        if mishap == "user":
            raise ConfigError("the user's mistake")
        return 2 * number


def run(marks: Path, tasks: list[tuple[int, str]], workers: int) -> dict[int, int]:
    # Pickled by value: Ray's workers cannot import this file.
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    results: dict[int, int] = {}

    def keep(task: tuple[int, str], result: int) -> None:
        assert task[0] not in results
        results[task[0]] = result

    run_tasks(tasks, partial(Doubler, marks), on_result=keep, workers=workers)
    return results


@pytest.mark.parametrize("count", [0, 1, 5])
def test_tasks_run_in_this_process(tmp_path: Path, count: int) -> None:
    tasks = [(number, "") for number in range(count)]
    assert run(tmp_path, tasks, 0) == {number: 2 * number for number in range(count)}


def test_errors_in_this_process_come_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="worker trouble"):
        run(tmp_path, [(0, "raises")], 0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
class TestOnRay:
    def test_actors_give_what_this_process_gives(self, tmp_path: Path) -> None:
        tasks = [(number, "") for number in range(9)]
        assert run(tmp_path, tasks, 2) == {number: 2 * number for number in range(9)}
        assert {path.read_text() for path in tmp_path.iterdir()} == {"x"}

    def test_a_dead_actors_tasks_are_run_by_another(self, tmp_path: Path) -> None:
        tasks = [(n, {1: "dies once", 3: "raises once"}.get(n, "")) for n in range(6)]
        assert run(tmp_path, tasks, 2) == {number: 2 * number for number in range(6)}
        assert (tmp_path / "1").read_text() == "xx"

    @pytest.mark.parametrize(("mishap", "marks"), [("always dies", "xxxx"), ("raises", "xxx")])
    def test_a_task_has_three_attempts(self, tmp_path: Path, mishap: str, marks: str) -> None:
        with pytest.raises(JobError, match=r"Task \(1, .* failed 3 times"):
            run(tmp_path, [(0, ""), (1, mishap), (2, "")], 1)
        # A death beside another task counts for neither; an exception says whose it is.
        assert (tmp_path / "1").read_text() == marks

    def test_a_users_mistake_ends_the_run_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the user's mistake"):
            run(tmp_path, [(0, "user")], 1)
        assert (tmp_path / "0").read_text() == "x"

    def test_workers_that_cannot_start_are_reported(self, tmp_path: Path) -> None:
        def broken() -> Doubler:
            raise OSError("no weights here")

        with pytest.raises(JobError, match="no weights here"):
            run_tasks([1], broken, on_result=print, workers=1)
