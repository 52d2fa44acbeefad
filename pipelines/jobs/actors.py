"""Ray actors that do the tasks of a TaskQueue: started, watched, replaced, ended."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ops.config import UserError
from pipelines.jobs.queue import JobError, TaskQueue, Unit

T = TypeVar("T")
R = TypeVar("R")

PROGRESS_SECONDS = 1.0  # how often workers are asked how far they are
OBJECT_STORE_BYTES = 256 << 20  # results are small; Ray would take 30% of the memory
LOST_STARTS = 10  # so many actors in a row may die before they are up; accidents happen there too
OUT_OF_MEMORY = (
    "the machine ran out of memory and the worker was killed for it. Use fewer workers, or for "
    "new work a smaller batch size"
)
PROCESS_DIED = "the worker's process died: it was killed, crashed, or used up the memory"


@contextmanager
def ray_running(address: str | None = None, cpus: float = 1) -> Iterator[None]:
    """A Ray to use: the one this process is connected to, the one at `address`, or a local one.

    Only a connection made here is closed again. A local Ray offers at least `cpus` CPUs.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=max(round(cpus), os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        ray.shutdown()


class _Actor:
    """What runs inside an actor's process."""

    def __init__(self, make_worker: Callable[[], Any]) -> None:
        self._make_worker = make_worker
        self._worker: Any = None

    def make_ready(self) -> None:
        # Not in __init__: what that raises reaches the driver as text alone.
        self._worker = self._make_worker()

    def run(self, task: Any) -> Any:
        return self._worker.run(task)

    def progress(self) -> Any:
        return self._worker.progress() if hasattr(self._worker, "progress") else None


@dataclass(eq=False)
class _Slot(Generic[T]):
    """One actor and what it is doing; tasks go only to actors that have come up."""

    actor: Any
    coming_up: Any  # a reference that resolves when the actor is up; None afterwards
    held: dict[Any, Unit[T]] = field(default_factory=dict)  # by the reference to its result
    asked: Any = None  # a reference to the answer to progress()
    progress: Any = None  # the last answer, while no task that it counts has ended

    def references(self) -> list[Any]:
        """All that may be heard of it; older news first."""
        single = [reference for reference in (self.coming_up, self.asked) if reference is not None]
        return single + list(self.held)


class ActorPool(Generic[T, R]):
    """The actors of one run: hands them the queue's tasks and hears what comes of them."""

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
        # One thread more than tasks, for progress(). Without threads a second task waits in the
        # actor, so that the actor never waits for us.
        self.options = {**resources, "max_concurrency": overlap + 1 if threaded else 1}
        self.depth = overlap if threaded else 2
        self.attempts = attempts
        self.failed_starts = 0  # in a row
        self.give_up = give_up
        self.on_progress = on_progress
        self.slots: list[_Slot[T]] = []

    def work_off(self, workers: int, on_result: Callable[[T, R], None]) -> None:
        """Start `workers` actors and return when every task's result has come.

        Raises JobError where the queue does, where no actor comes up and where Ray itself fails.
        """
        import ray

        try:
            self.slots = [self._new_slot() for _ in range(workers)]
            last_report = time.monotonic()
            while self.queue.left:
                self._hand_out()
                for unit, result in self._listen():
                    on_result(unit.work, result)
                if self.on_progress and time.monotonic() - last_report >= PROGRESS_SECONDS:
                    last_report = time.monotonic()
                    self._tell_progress(self.on_progress)
        except ray.exceptions.RayError as error:
            raise JobError(f"Ray failed: {error}") from error
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
        """Give waiting tasks to actors that are up, first one each, then the second."""
        for depth in range(self.depth):
            for slot in self.slots:
                if slot.coming_up is None and len(slot.held) == depth:
                    unit = self.queue.take(list(slot.held.values()))
                    if unit is not None:
                        slot.held[slot.actor.run.remote(unit.work)] = unit

    def _tell_progress(self, on_progress: Callable[[list[Any]], None]) -> None:
        """Pass on the answers that have come, and ask again."""
        on_progress([slot.progress for slot in self.slots if slot.progress is not None])
        for slot in self.slots:
            if slot.coming_up is None and slot.asked is None:
                slot.asked = slot.actor.progress.remote()

    def _listen(self) -> list[tuple[Unit[T], R]]:
        """Wait for the next news of any actor: at most one task and its result."""
        import ray

        slot_of = {reference: slot for slot in self.slots for reference in slot.references()}
        pause = PROGRESS_SECONDS if self.on_progress else None
        news, _ = ray.wait(list(slot_of), num_returns=1, timeout=pause)
        if not news:
            return []
        reference, slot = news[0], slot_of[news[0]]
        try:
            value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            self._raised(reference, slot, error)
        except ray.exceptions.RayError as error:
            self._died(slot, _why_died(error), LOST_STARTS)
        else:
            return self._context(reference, slot, value)
        return []

    def _context(self, reference: Any, slot: _Slot[T], value: Any) -> list[tuple[Unit[T], R]]:
        if reference == slot.coming_up:
            slot.coming_up = None
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
        if reference == slot.coming_up:
            self._died(slot, str(error), self.attempts)
        elif reference == slot.asked:
            raise error
        else:
            self.queue.raised(slot.held.pop(reference), str(error))

    def _died(self, slot: _Slot[T], why: str, allowed_starts: int) -> None:
        """Give a dead actor's tasks back and start another in its place."""
        import ray

        ray.kill(slot.actor)  # one that is only out of reach shall not go on
        if slot.coming_up is not None:
            self.failed_starts += 1
            if self.failed_starts >= allowed_starts:
                raise JobError(f"Workers do not start: {why}")
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
    # Ray says this in ten lines, of which most are the same for every cause.
    return PROCESS_DIED if "worker process has died" in str(error) else str(error)
