"""ActorPool: starts Ray actors, gives them the tasks of a TaskQueue, replaces dead ones.

Actors for which the cluster has no room wait in Ray, and start when nodes come; those that have
started work meanwhile. An actor that is lost with its node waits in the same way for another.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.console import show_error
from pipelines.jobs.queue import MAX_LOSSES, TaskQueue, Unit, is_final, job_error
from pipelines.jobs.stalls import StallWatch
from pipelines.jobs.worker_reports import PROGRESS_SECONDS, Report, worker_reports

T = TypeVar("T")
R = TypeVar("R")

LOST_STARTS = 10  # actors in a row that may die while they start
WAITING_SECONDS = 30.0  # after which a line says that actors wait for the cluster
DRAINING_SECONDS = 5.0  # between two looks at which nodes are being drained
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

    def make_ready(self) -> str:
        """Make the worker; returns the id of the node that it is on."""
        import ray

        # Not in __init__: Ray passes on exceptions of that as text only.
        self._worker = self._make_worker()
        return str(ray.get_runtime_context().get_node_id())

    def run(self, task: Any) -> Any:
        return self._worker.run(task)

    def reports(self, seconds: float) -> Iterator[Report]:
        """Each is sent to the driver when it is yielded."""
        yield from worker_reports(self._worker, seconds, threading.Event())


@dataclass(eq=False)
class _Slot(Generic[T]):
    """One actor and the tasks it runs; an actor gets tasks once it has started."""

    actor: Any
    started: bool = False
    node: str = ""  # that it is on, once it has started
    draining: bool = False  # the node is to end soon
    held: dict[Any, Unit[T]] = field(default_factory=dict)  # by the reference to the result
    reports: Any = None  # the generator of its reports
    progress: Any = None  # as last reported; None once a task that it counts has ended
    progressed: float = 0.0  # when it last did, by the pool's StallWatch


class ActorPool(Generic[T, R]):
    """The actors of one run: gives them the queue's tasks and collects the results.

    An actor that makes no progress for `stall_timeout` seconds is killed.
    """

    def __init__(
        self,
        queue: TaskQueue[T],
        make_worker: Callable[[], Any],
        resources: dict[str, float],
        *,
        overlap: int,
        attempts: int,
        give_up: Callable[[T, bool], Any] | None,
        on_progress: Callable[[list[Any]], None] | None,
        stall_timeout: float | None = None,
    ) -> None:
        self.queue = queue
        self.make_worker = make_worker
        self.reporting = on_progress is not None or stall_timeout is not None
        threaded = overlap > 1 or self.reporting
        # One thread more than tasks, for reports(). Without threads a second task is queued in the
        # actor, so that the actor never waits for the driver.
        self.options = {**resources, "max_concurrency": overlap + 1 if threaded else 1}
        self.depth = overlap if threaded else 2
        self.attempts = attempts
        self.failed_starts = 0  # in a row
        self.give_up = give_up
        self.on_progress = on_progress
        self.watch = StallWatch(stall_timeout)
        self.slots: list[_Slot[T]] = []
        self._slot_of: dict[Any, _Slot[T]] = {}  # by everything that may become ready
        self._due: dict[Callable[[], None], float] = {}  # what is done now and then, and when

    def run(self, workers: int, on_result: Callable[[T, R], None]) -> None:
        """Start up to `workers` actors, as there is room, and return when every task has its
        result.

        Raises JobError where the queue does, where no actor starts and where Ray itself fails.
        """
        import ray

        now = time.monotonic()
        self._due = {
            self._show_progress: now + PROGRESS_SECONDS,
            self._note_draining: now + DRAINING_SECONDS,
            self._show_waiting: now + WAITING_SECONDS,
        }
        try:
            self.slots = [self._new_slot() for _ in range(workers)]
            while self.queue.left:
                self._hand_out()
                for unit, result in self._results():
                    on_result(unit.work, result)
                self._kill_stalled()
                self._do_what_is_due()
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
        slot: _Slot[T] = _Slot(actor)
        self._slot_of[actor.make_ready.remote()] = slot
        return slot

    def _hand_out(self) -> None:
        """Give waiting tasks to actors that have started: one to each, then a second."""
        for slot in [slot for slot in self.slots if slot.draining and not slot.held]:
            self._replace(slot)
        for depth in range(self.depth):
            for slot in self.slots:
                if slot.started and not slot.draining and len(slot.held) == depth:
                    unit = self.queue.take(list(slot.held.values()))
                    if unit is not None:
                        if not slot.held:
                            slot.progressed = self.watch.now
                        reference = slot.actor.run.remote(unit.work)
                        slot.held[reference] = unit
                        self._slot_of[reference] = slot

    def _results(self) -> Iterator[tuple[Unit[T], R]]:
        """Wait for something to happen and handle all that has; yields tasks and their results."""
        import ray

        waiting = list(self._slot_of)
        ready, _ = ray.wait(waiting, num_returns=1, timeout=self.watch.interval)
        if ready:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        self.watch.tick()
        dead: dict[_Slot[T], Exception] = {}  # results that came before an actor's death count
        for reference in ready:
            slot = self._slot_of.get(reference)
            if slot is None:  # it was replaced since its worker could not be made
                continue
            try:
                value = ray.get(next(reference) if reference is slot.reports else reference)
            except ray.exceptions.RayTaskError as error:
                if is_final(error.cause):
                    raise error.cause from None
                self._raised(reference, slot, error)
            except ray.exceptions.RayError as error:
                dead.setdefault(slot, error)
            else:
                yield from self._succeeded(reference, slot, value)
        for slot, death in dead.items():
            lost = _is_lost(death)
            # Many actors are lost at once with one node.
            allowed = MAX_LOSSES * len(self.slots) if lost else LOST_STARTS
            self._died(slot, _why_died(death), allowed, lost=lost)

    def _succeeded(self, reference: Any, slot: _Slot[T], value: Any) -> Iterator[tuple[Unit[T], R]]:
        slot.progressed = self.watch.now
        if reference is slot.reports:
            slot.progress = value.progress
            return
        del self._slot_of[reference]
        if not slot.started:
            slot.started, slot.node = True, value
            self.failed_starts = 0
            if self.reporting:
                slot.reports = slot.actor.reports.remote(self.watch.interval)
                self._slot_of[slot.reports] = slot
            return
        slot.progress = None
        unit = slot.held.pop(reference)
        if self.queue.succeeded(unit):
            yield unit, value

    def _raised(self, reference: Any, slot: _Slot[T], error: Exception) -> None:
        if reference is slot.reports:
            raise error
        if not slot.started:
            self._died(slot, str(error), self.attempts)
        else:
            slot.progress, slot.progressed = None, self.watch.now
            del self._slot_of[reference]
            self.queue.raised(slot.held.pop(reference), str(error))

    def _kill_stalled(self) -> None:
        for slot in list(self.slots):
            if slot.held and self.watch.is_stalled(slot.progressed):
                self._died(slot, self.watch.why(), LOST_STARTS, stalled=True)

    def _died(
        self,
        slot: _Slot[T],
        why: str,
        allowed_starts: int,
        *,
        lost: bool = False,
        stalled: bool = False,
    ) -> None:
        """Return a dead actor's tasks to the queue and start another actor in its place."""
        if not slot.started:
            self.failed_starts += 1
            if self.failed_starts >= allowed_starts:
                raise job_error("Workers do not start", why)
        self._replace(slot)
        held = list(slot.held.values())
        if held:
            if lost:
                unit = self.queue.lost(held, why)
            else:
                unit = self.queue.died(held, why, stalled=stalled)
            if unit is not None:
                assert self.give_up is not None
                self.give_up(unit.work, unit.stalled)
                self.queue.settled(unit)

    def _replace(self, slot: _Slot[T]) -> None:
        import ray

        ray.kill(slot.actor)  # it may only be out of reach, and must not go on
        self._slot_of = {what: of for what, of in self._slot_of.items() if of is not slot}
        self.slots[self.slots.index(slot)] = self._new_slot()

    # --- now and then

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for what, when in list(self._due.items()):
            if now >= when:
                what()

    def _show_progress(self) -> None:
        self._due[self._show_progress] = time.monotonic() + PROGRESS_SECONDS
        if self.on_progress is not None:
            self.on_progress([slot.progress for slot in self.slots if slot.progress is not None])

    def _note_draining(self) -> None:
        """Note which actors are on nodes that are to end: they get no more tasks."""
        import ray

        self._due[self._note_draining] = time.monotonic() + DRAINING_SECONDS
        # Private, but nothing else tells; Ray Train asks the same way.
        draining: Any = ray._private.state.state.get_draining_nodes()
        for slot in self.slots:
            slot.draining = slot.node in draining

    def _show_waiting(self) -> None:
        """Tell once that some actors have not started."""
        del self._due[self._show_waiting]
        started = sum(slot.started for slot in self.slots)
        if started < len(self.slots):
            show_error(
                f"{started} of {len(self.slots)} workers have started; the others start when the "
                "cluster has room for them."
            )


def _is_lost(error: Exception) -> bool:
    """Whether an actor ended with its node, or cannot be reached, and not by what it did itself.

    That is so for nodes that were pre-empted, drained or switched off, and for those that failed.
    """
    import ray

    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return True
    preempted = isinstance(error, ray.exceptions.ActorDiedError) and error.preempted
    return preempted or "its node has died" in str(error)


def _why_died(error: Exception) -> str:
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return OUT_OF_MEMORY
    # Ray's message has ten lines, mostly the same for every cause.
    return PROCESS_DIED if "worker process has died" in str(error) else str(error)
