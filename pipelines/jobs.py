"""One queue of tasks over Ray actors, or in this process; the same results either way.

The queue lives in the driver. Actors never restart by themselves: the driver sees one die, gives
its tasks back to the queue and starts another. A task must therefore be safe to run twice.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ops.config import UserError

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

IN_FLIGHT = 2  # tasks an actor holds: one runs, one waits, so the actor never waits for the driver
OBJECT_STORE_BYTES = 256 << 20  # results are small; Ray would take 30% of the memory


class JobError(UserError):
    """A task that failed every attempt, for reasons that are not in its data."""


class Worker(Protocol[T_contra, R_co]):
    def run(self, task: T_contra, /) -> R_co: ...


def run_tasks(
    tasks: Sequence[T],
    make_worker: Callable[[], Worker[T, R]],
    *,
    on_result: Callable[[T, R], None],
    workers: int = 0,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    address: str | None = None,
    attempts: int = 3,
) -> None:
    """Run every task once to its end and hand each result to `on_result`, in any order.

    `workers` 0 runs them in this process, one by one; otherwise on that many Ray actors, each
    with a worker of its own from `make_worker` (sent by pickle). A task whose actor dies or whose
    worker raises is tried again, `attempts` times in all, then JobError tells of it. A UserError
    from a worker ends the run at once: trying again would not mend it.
    """
    if not tasks:
        return
    if workers == 0:
        worker = make_worker()
        for task in tasks:
            on_result(task, worker.run(task))
        return
    with ray_running(address, cpus=workers * cpus_per_worker):
        options = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
        count = min(workers, len(tasks))
        queue: _Queue[T, R] = _Queue(
            tasks, lambda: _start_actor(make_worker, options), count, attempts
        )
        try:
            queue.drain(on_result)
        finally:
            queue.end_actors()


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

    def __init__(self, make_worker: Callable[[], Worker[Any, Any]]) -> None:
        self._worker = make_worker()

    def ready(self) -> bool:
        return True

    def run(self, task: Any) -> Any:
        return self._worker.run(task)


def _start_actor(make_worker: Callable[[], Worker[Any, Any]], options: dict[str, float]) -> Any:
    import ray

    actor_class = ray.remote(_Actor)
    return actor_class.options(max_restarts=0, max_task_retries=0, **options).remote(make_worker)


@dataclass(eq=False)
class _Seat:
    """One actor and what it is doing; tasks go only to actors that have come up."""

    actor: Any
    coming_up: Any  # a reference that resolves when the actor is up; None afterwards
    held: deque[tuple[Any, int]] = field(default_factory=deque)  # (reference, task number)

    def references(self) -> list[Any]:
        waiting = [] if self.coming_up is None else [self.coming_up]
        return waiting + [reference for reference, _ in self.held]


class _Queue(Generic[T, R]):
    def __init__(
        self, tasks: Sequence[T], start_actor: Callable[[], Any], workers: int, attempts: int
    ) -> None:
        self.tasks = tasks
        self.waiting = deque(range(len(tasks)))
        self.failures = [0] * len(tasks)
        self.failed_starts = 0
        self.attempts = attempts
        self.start_actor = start_actor
        self.seats = [self._new_seat() for _ in range(workers)]

    def _new_seat(self) -> _Seat:
        actor = self.start_actor()
        return _Seat(actor, actor.ready.remote())

    def drain(self, on_result: Callable[[T, R], None]) -> None:
        import ray

        left = len(self.tasks)
        while left:
            self._hand_out()
            seat_of = {ref: seat for seat in self.seats for ref in seat.references()}
            done, _ = ray.wait(list(seat_of), num_returns=1)
            for result, number in self._collect(done[0], seat_of[done[0]]):
                on_result(self.tasks[number], result)
                left -= 1

    def _hand_out(self) -> None:
        """Give waiting tasks to actors that are up, first one each, then the second."""
        for depth in range(IN_FLIGHT):
            for seat in self.seats:
                if self.waiting and seat.coming_up is None and len(seat.held) == depth:
                    number = self.waiting.popleft()
                    seat.held.append((seat.actor.run.remote(self.tasks[number]), number))

    def _collect(self, reference: Any, seat: _Seat) -> list[tuple[R, int]]:
        """What `reference` brought: at most one (result, task number)."""
        import ray

        number = next((number for held, number in seat.held if held == reference), None)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            assert number is not None  # ready() itself raises nothing
            self._give_back(seat, number)
            self._count_failure(number, error)
            return []
        except ray.exceptions.RayActorError as error:
            self._replace(seat, error)
            return []
        if number is None:
            seat.coming_up = None
            return []
        seat.held.remove((reference, number))
        return [(result, number)]

    def _give_back(self, seat: _Seat, number: int) -> None:
        seat.held = deque(entry for entry in seat.held if entry[1] != number)
        self.waiting.appendleft(number)

    def _replace(self, seat: _Seat, error: Exception) -> None:
        """Give a dead actor's tasks back and start another in its place."""
        if not seat.held:
            self.failed_starts += 1
            if self.failed_starts >= self.attempts:
                raise JobError(f"Workers do not start: {error}") from error
        held = [number for _, number in seat.held]
        self.waiting.extendleft(reversed(held))
        self.seats[self.seats.index(seat)] = self._new_seat()
        if held:  # an actor works in order: the first one was running, the others only waited
            self._count_failure(held[0], error)

    def _count_failure(self, number: int, error: Exception) -> None:
        self.failures[number] += 1
        if self.failures[number] >= self.attempts:
            raise JobError(
                f"Task {self.tasks[number]} failed {self.attempts} times; the last time: {error}"
            ) from error

    def end_actors(self) -> None:
        import ray

        for seat in self.seats:
            ray.kill(seat.actor)
