"""ActorPool: starts Ray actors, gives them the tasks of a TaskQueue, replaces dead ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.jobs.queue import TaskQueue, Unit, is_final, job_error

T = TypeVar("T")
R = TypeVar("R")

PROGRESS_SECONDS = 1.0  # between two requests for progress
LOST_STARTS = 10  # actors in a row that may die while they start
OUT_OF_MEMORY = (
    "the machine ran out of memory and the worker was killed for it. Use fewer workers, or for "
    "new work a smaller batch size"
)
PROCESS_DIED = "the worker's process died: it was killed, crashed, or used up the memory"


class _Actor:
    """The actor class: holds a worker in its own process."""

    def __init__(self, make_worker: Callable[[], Any]) -> None:
        self._make_worker = make_worker
        self._worker: Any = None

    def make_ready(self) -> None:
        # Not in __init__: Ray passes on exceptions of that as text only.
        self._worker = self._make_worker()

    def run(self, task: Any) -> Any:
        return self._worker.run(task)

    def progress(self) -> Any:
        return self._worker.progress() if hasattr(self._worker, "progress") else None


@dataclass(eq=False)
class _Slot(Generic[T]):
    """One actor and the tasks it runs; an actor gets tasks once it has started."""

    actor: Any
    starting: Any  # a reference that resolves when the actor has started; None afterwards
    held: dict[Any, Unit[T]] = field(default_factory=dict)  # by the reference to the result
    asked: Any = None  # a reference to the result of progress()
    progress: Any = None  # the last such result; None once a task that it counts has ended

    def references(self) -> list[Any]:
        """All references that may resolve, oldest first."""
        single = [reference for reference in (self.starting, self.asked) if reference is not None]
        return single + list(self.held)


class ActorPool(Generic[T, R]):
    """The actors of one run: gives them the queue's tasks and collects the results."""

    def __init__(
        self,
        queue: TaskQueue[T],
        make_worker: Callable[[], Any],
        resources: dict[str, float],
        *,
        overlap: int,
        attempts: int,
        give_up: Callable[[T], Any] | None,
        on_progress: Callable[[list[Any]], None] | None,
    ) -> None:
        self.queue = queue
        self.make_worker = make_worker
        threaded = overlap > 1 or on_progress is not None
        # One thread more than tasks, for progress(). Without threads a second task is queued in the
        # actor, so that the actor never waits for the driver.
        self.options = {**resources, "max_concurrency": overlap + 1 if threaded else 1}
        self.depth = overlap if threaded else 2
        self.attempts = attempts
        self.failed_starts = 0  # in a row
        self.give_up = give_up
        self.on_progress = on_progress
        self.slots: list[_Slot[T]] = []

    def run(self, workers: int, on_result: Callable[[T, R], None]) -> None:
        """Start `workers` actors and return when every task has its result.

        Raises JobError where the queue does, where no actor starts and where Ray itself fails.
        """
        import ray

        try:
            self.slots = [self._new_slot() for _ in range(workers)]
            last_report = time.monotonic()
            while self.queue.left:
                self._hand_out()
                for unit, result in self._next_results():
                    on_result(unit.work, result)
                if self.on_progress and time.monotonic() - last_report >= PROGRESS_SECONDS:
                    last_report = time.monotonic()
                    self._report_progress(self.on_progress)
        except ray.exceptions.RayError as error:
            raise job_error("Ray failed", str(error)) from error
        finally:
            for slot in self.slots:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(slot.actor)

    def _new_slot(self) -> _Slot[T]:
        import ray

        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, **self.options}
        actor_class: Any = ray.remote(_Actor)
        actor = actor_class.options(**options).remote(self.make_worker)
        return _Slot(actor, actor.make_ready.remote())

    def _hand_out(self) -> None:
        """Give waiting tasks to actors that have started: one to each, then a second."""
        for depth in range(self.depth):
            for slot in self.slots:
                if slot.starting is None and len(slot.held) == depth:
                    unit = self.queue.take(list(slot.held.values()))
                    if unit is not None:
                        slot.held[slot.actor.run.remote(unit.work)] = unit

    def _report_progress(self, on_progress: Callable[[list[Any]], None]) -> None:
        """Pass on the last progress of every actor, and ask for the next."""
        on_progress([slot.progress for slot in self.slots if slot.progress is not None])
        for slot in self.slots:
            if slot.starting is None and slot.asked is None:
                slot.asked = slot.actor.progress.remote()

    def _next_results(self) -> list[tuple[Unit[T], R]]:
        """Wait for one reference of any actor; at most one task and its result."""
        import ray

        slot_of = {reference: slot for slot in self.slots for reference in slot.references()}
        timeout = PROGRESS_SECONDS if self.on_progress else None
        ready, _ = ray.wait(list(slot_of), num_returns=1, timeout=timeout)
        if not ready:
            return []
        reference, slot = ready[0], slot_of[ready[0]]
        try:
            value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if is_final(error.cause):
                raise error.cause from None
            self._raised(reference, slot, error)
        except ray.exceptions.RayError as error:
            self._died(slot, _why_died(error), LOST_STARTS)
        else:
            return self._succeeded(reference, slot, value)
        return []

    def _succeeded(self, reference: Any, slot: _Slot[T], value: Any) -> list[tuple[Unit[T], R]]:
        if reference == slot.starting:
            slot.starting = None
            self.failed_starts = 0
        elif reference == slot.asked:
            slot.asked, slot.progress = None, value
        else:
            slot.progress = None
            unit = slot.held.pop(reference)
            if self.queue.succeeded(unit):
                return [(unit, value)]
        return []

    def _raised(self, reference: Any, slot: _Slot[T], error: Exception) -> None:
        if reference == slot.starting:
            self._died(slot, str(error), self.attempts)
        elif reference == slot.asked:
            raise error
        else:
            self.queue.raised(slot.held.pop(reference), str(error))

    def _died(self, slot: _Slot[T], why: str, allowed_starts: int) -> None:
        """Return a dead actor's tasks to the queue and start another actor in its place."""
        import ray

        ray.kill(slot.actor)  # it may only be out of reach, and must not go on
        if slot.starting is not None:
            self.failed_starts += 1
            if self.failed_starts >= allowed_starts:
                raise job_error("Workers do not start", why)
        self.slots[self.slots.index(slot)] = self._new_slot()
        if slot.held:
            unit = self.queue.died(list(slot.held.values()), why)
            if unit is not None:
                assert self.give_up is not None
                self.give_up(unit.work)
                self.queue.settled(unit)


def _why_died(error: Exception) -> str:
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return OUT_OF_MEMORY
    # Ray's message has ten lines, mostly the same for every cause.
    return PROCESS_DIED if "worker process has died" in str(error) else str(error)
