"""One queue of tasks over Ray actors, or in this process; the same results either way.

The queue lives in the driver. Actors never restart by themselves: the driver sees one die, gives
its tasks back to the queue and starts another. A task must therefore be safe to run twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from pipelines.jobs.actors import PROGRESS_SECONDS, ActorPool, ray_running
from pipelines.jobs.cluster import check_on_every_node, cluster_address, inside_job
from pipelines.jobs.queue import JobError, TaskQueue

__all__ = ["JobError", "Worker", "run_tasks"]

NOTHING: Mapping[str, Path] = MappingProxyType({})

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Worker(Protocol[T_contra, R_co]):
    """What does the tasks, in one process.

    One that is to be inside of several tasks at once also has `stop()`, which makes its threads
    end soon; one may have `progress()`, any account of the work it is inside of.
    """

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
    overlap: int = 1,
    split: Callable[[T], Sequence[T]] | None = None,
    give_up: Callable[[T], Any] | None = None,
    proven: bool = False,
    on_progress: Callable[[list[Any]], None] | None = None,
    reads: Mapping[str, Path] = NOTHING,
    writes: Mapping[str, Path] = NOTHING,
) -> None:
    """Run every task once to its end and hand each result to `on_result`, in any order.

    `workers` 0 runs them in this process; otherwise on that many Ray actors, each with a worker
    of its own from `make_worker` (sent by pickle). A worker is inside of up to `overlap` tasks at
    once, in threads. A task whose actor dies or whose worker raises is tried again, `attempts`
    times in all, then JobError tells of it. A UserError from a worker ends the run at once: trying
    again would not mend it.

    With `split`, a task that kills its actors `attempts` times is cut into pieces, which run like
    tasks; the piece that still kills and cannot be cut goes to `give_up`, in this process. Then
    the task runs again, and is expected to find its pieces done. Nothing is given up before
    something has succeeded, in this run or, if it is `proven`, before. TaskQueue has the rules.

    `on_progress` gets progress() of every worker about once a second. On a cluster, every node must
    see the paths `reads` and be able to write `writes`, both by flag: ClusterPathError else.
    """
    if not tasks:
        return
    if workers == 0:
        _run_here(tasks, make_worker(), on_result, overlap, on_progress)
        return
    assert (split is None) == (give_up is None), "what cannot be split must be given up"
    pool: ActorPool[T, R] = ActorPool(
        TaskQueue(tasks, attempts=attempts, split=split, workers=workers, proven=proven),
        make_worker,
        {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker},
        overlap=overlap,
        attempts=attempts,
        give_up=give_up,
        on_progress=on_progress,
    )
    with ray_running(cluster_address(address), cpus=workers * cpus_per_worker):
        if address or inside_job():
            check_on_every_node(reads, writes)
        pool.work_off(min(workers, len(tasks)), on_result)


def _run_here(
    tasks: Sequence[T],
    worker: Worker[T, R],
    on_result: Callable[[T, R], None],
    overlap: int,
    on_progress: Callable[[list[Any]], None] | None,
) -> None:
    if overlap == 1 and on_progress is None:
        for task in tasks:
            on_result(task, worker.run(task))
        return
    waiting = deque(tasks)
    running: dict[Future[R], T] = {}
    last_report = time.monotonic()
    with ThreadPoolExecutor(overlap, "task") as threads:
        try:
            while waiting or running:
                while waiting and len(running) < overlap:
                    task = waiting.popleft()
                    running[threads.submit(worker.run, task)] = task
                for future in wait(running, PROGRESS_SECONDS, FIRST_COMPLETED).done:
                    on_result(running.pop(future), future.result())
                if on_progress is not None and time.monotonic() - last_report >= PROGRESS_SECONDS:
                    last_report = time.monotonic()
                    on_progress([worker.progress()] if hasattr(worker, "progress") else [])
        finally:  # on Ctrl-C too: leaving the pool waits for its threads
            worker.stop()  # type: ignore[attr-defined]
