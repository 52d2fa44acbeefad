"""run_tasks: a queue of tasks on Ray actors, or in this process, with the same results.

The queue is the driver's. Actors never restart by themselves: when one dies, the driver returns
its tasks to the queue and starts another. So a task must be safe to run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from ops.paths import AnyPath
from pipelines.jobs.actors import ActorPool
from pipelines.jobs.cluster import (
    check_on_every_node,
    cluster_address,
    inside_job,
    ray_running,
    worker_after_check,
)
from pipelines.jobs.local import LocalPool
from pipelines.jobs.queue import JobError, TaskQueue

__all__ = ["JobError", "Worker", "run_tasks"]

NOTHING: Mapping[str, AnyPath] = MappingProxyType({})

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Worker(Protocol[T_contra, R_co]):
    """Runs tasks in one process.

    A worker that runs several tasks at once, or reports progress, also has `stop()`, which makes
    its threads end soon. `progress()`, if it has one, returns anything about its running tasks, to
    be shown. `heartbeat()`, if it has one, returns anything that changes more often, as long as it
    works. Both are called in a thread of their own.
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
    give_up: Callable[[T, bool], Any] | None = None,
    proven: bool = False,
    on_progress: Callable[[list[Any]], None] | None = None,
    stall_timeout: float | None = None,
    reads: Mapping[str, AnyPath] = NOTHING,
    writes: Mapping[str, AnyPath] = NOTHING,
) -> None:
    """Run every task until it has a result and pass each to `on_result`, in any order.

    With `workers` 0 they run in a child process where a fork_server is running, else in this
    process; otherwise on Ray actors, each with its own worker from `make_worker` (sent by pickle).
    `workers` of them are wanted: those that the cluster has no room for start when nodes come.
    A worker runs up to `overlap` tasks at once, in threads. A task whose worker dies or
    raises is tried `attempts` times, then JobError is raised, or in this process the exception. A
    UserError from a worker ends the run at once: it would be raised again; not a TransientError.
    A worker that is lost with its node is no death of its tasks.

    With `split`, a task that kills its workers `attempts` times is cut into pieces, which run like
    tasks; a piece that still kills and cannot be cut is passed to `give_up`, in this process, with
    whether it made no progress. Then the task runs again, and should find its pieces done. Nothing
    is given up before something has succeeded, in this run or, if it is `proven`, before. TaskQueue
    has the rules.

    A worker none of whose tasks ends, and whose progress() and heartbeat() do not change, for
    `stall_timeout` seconds is killed, which is a death; not in this process. `on_progress` gets
    progress() of every worker about once a second. On a cluster, every node must see the paths
    `reads` and be able to write `writes`, both by flag, also those that join later; raises
    ClusterPathError otherwise.
    """
    if not tasks:
        return
    assert (split is None) == (give_up is None), "split needs give_up"
    queue = TaskQueue(tasks, attempts=attempts, split=split, workers=max(1, workers), proven=proven)
    if workers == 0:
        local: LocalPool[T, R] = LocalPool(
            queue,
            make_worker,
            overlap=overlap,
            give_up=give_up,
            on_progress=on_progress,
            stall_timeout=stall_timeout,
        )
        local.run(on_result)
        return
    on_cluster = bool(address or inside_job())
    if on_cluster:
        make_worker = partial(worker_after_check, make_worker, reads, writes)
    pool: ActorPool[T, R] = ActorPool(
        queue,
        make_worker,
        {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker},
        overlap=overlap,
        attempts=attempts,
        give_up=give_up,
        on_progress=on_progress,
        stall_timeout=stall_timeout,
    )
    with ray_running(cluster_address(address), cpus=workers * cpus_per_worker):
        if on_cluster:
            check_on_every_node(reads, writes)
        pool.run(min(workers, len(tasks)), on_result)
