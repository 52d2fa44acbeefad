"""ActorPool without Ray: what the driver makes of the events of many actors at once."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipelines.jobs import actors
from pipelines.jobs.actors import ActorPool
from pipelines.jobs.queue import JobError, TaskQueue


class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = None


class ActorUnavailableError(RayError):
    pass


class ActorDiedError(RayError):
    def __init__(self, message: str, preempted: bool = False) -> None:
        super().__init__(message)
        self.preempted = preempted


class OutOfMemoryError(RayError):
    pass


class Reference:
    """What a call returns; `outcome` is its value or error once it has come."""

    def __init__(self, outcome: Any = None) -> None:
        self.outcome = outcome

    def __next__(self) -> Reference:
        return self


class Actors:
    """A stand-in for Ray: actors on nodes "node 0", "node 1" and so on that start at once.

    `outcome(number, task)` is that of a task on an actor, None where it does not end yet.
    """

    def __init__(self, outcome: Callable[[int, Any], Any]) -> None:
        self.outcome = outcome
        self.numbers = itertools.count()
        self.killed: list[int] = []
        self.draining: dict[str, int] = {}
        self.waits = 0
        self.run: list[tuple[int, Any]] = []  # (actor, task)

    def module(self) -> Any:
        found: Any = ModuleType("ray")
        found.exceptions = SimpleNamespace(
            RayError=RayError,
            RayTaskError=RayTaskError,
            ActorUnavailableError=ActorUnavailableError,
            ActorDiedError=ActorDiedError,
            OutOfMemoryError=OutOfMemoryError,
        )
        state = SimpleNamespace(get_draining_nodes=lambda: self.draining)
        found._private = SimpleNamespace(state=SimpleNamespace(state=state))
        found.remote = lambda _: SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=self._start)
        )
        found.kill = lambda actor: self.killed.append(actor.number)
        found.wait, found.get = self._wait, self._get
        return found

    def _start(self, _: Any) -> SimpleNamespace:
        number = next(self.numbers)

        def run(task: Any) -> Reference:
            self.run.append((number, task))
            return Reference(self.outcome(number, task))

        def method(call: Callable[..., Reference]) -> SimpleNamespace:
            return SimpleNamespace(remote=call)

        return SimpleNamespace(
            number=number,
            make_ready=method(lambda: Reference(f"node {number}")),
            reports=method(lambda _: Reference()),
            run=method(run),
        )

    def _wait(
        self, references: Sequence[Reference], num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        self.waits += 1
        ready = [each for each in references if each.outcome is not None]
        return ready[:num_returns], []

    def _get(self, reference: Reference) -> Any:
        if isinstance(reference.outcome, Exception):
            raise reference.outcome
        return reference.outcome


def run_on(
    ray: Actors,
    monkeypatch: pytest.MonkeyPatch,
    tasks: int,
    workers: int,
    *,
    attempts: int = 1,
    stall_timeout: float | None = None,
) -> Counter[int]:
    """How often each task had its result."""
    monkeypatch.setitem(sys.modules, "ray", ray.module())
    results: Counter[int] = Counter()
    queue: TaskQueue[int] = TaskQueue(range(tasks), attempts=attempts, workers=workers)
    pool: ActorPool[int, int] = ActorPool(
        queue,
        lambda: None,
        {},
        overlap=2,
        attempts=attempts,
        give_up=None,
        on_progress=None,
        stall_timeout=stall_timeout,
    )
    pool.run(workers, lambda task, _: results.update([task]))
    return results


def test_all_that_is_ready_is_handled_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Actors(lambda _, task: task + 1)
    assert run_on(ray, monkeypatch, 1200, 300) == Counter(range(1200))
    assert ray.waits == 6  # two a pass: all actors started, then twice 600 results
    assert len(ray.killed) == 300


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError("the actor's node was preempted: spot", preempted=True),
        ActorDiedError("The actor died because its node has died. Node Id: 12"),
        ActorUnavailableError("Socket closed"),
    ],
)
def test_a_worker_lost_with_its_node_is_no_death_of_its_tasks(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first ten actors are lost; a death would end the run, since there is one attempt.
    ray = Actors(lambda number, task: error if number < 10 and task == 1 else task + 1)
    assert run_on(ray, monkeypatch, 6, 2) == Counter(range(6))
    assert sum(task == 1 for _, task in ray.run) >= 2


def test_a_task_whose_every_node_is_lost_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ActorDiedError("The actor died because its node has died.")
    ray = Actors(lambda _, task: error if task == 1 else task + 1)
    with pytest.raises(JobError, match="Task 1 failed 1 times"):
        run_on(ray, monkeypatch, 4, 1)
    assert sum(task == 1 for _, task in ray.run) == actors.MAX_LOSSES + 1


def test_a_result_that_came_before_its_actor_died_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = ActorUnavailableError("Socket closed")
    ray = Actors(lambda number, task: lost if (number, task) == (0, 0) else task + 1)
    assert run_on(ray, monkeypatch, 2, 1) == Counter(range(2))
    assert ray.run == [(0, 0), (0, 1), (1, 0)]


def test_an_actor_on_a_draining_node_gets_no_more_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "DRAINING_SECONDS", 0.0)
    ray = Actors(lambda _, task: task + 1)
    ray.draining = {"node 0": 0}
    assert run_on(ray, monkeypatch, 9, 2) == Counter(range(9))
    assert 0 in ray.killed
    assert {number for number, _ in ray.run} == {1, 2}


def test_an_actor_without_progress_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Actors(lambda number, task: None if number == 0 and task == 0 else task + 1)
    assert run_on(ray, monkeypatch, 9, 2, attempts=2, stall_timeout=0.01) == Counter(range(9))
    assert ray.killed[0] == 0
