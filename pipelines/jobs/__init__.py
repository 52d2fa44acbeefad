"""Runs tasks on Ray actors, in a child process or in this one, until each has its result.

`run_tasks` takes tasks, a function that makes a worker, and callbacks. A task whose worker dies or
raises is tried again; one that keeps killing its workers is split into pieces until the row that
kills is alone, and that row is given up. A worker that makes no progress is killed, and one that is
lost with its node replaced. Workers must be safe to run twice on the same task.
Read run.py first (the interface), then queue.py (the rules, without Ray) and actors.py.
"""

from pipelines.jobs.cluster import (
    check_absolute,
    check_on_every_node,
    cluster_address,
    cores_for_gpus,
    ray_running,
)
from pipelines.jobs.devices import WorkerDevices, gpus_of_worker, own_device
from pipelines.jobs.environment import (
    ACCEPTABLE,
    accepted,
    choose_environment,
    differing_environment,
    how_to_accept,
    precision_of,
)
from pipelines.jobs.local import forked_workers
from pipelines.jobs.progress import JobProgress
from pipelines.jobs.queue import Done, Piece, split_work
from pipelines.jobs.run import run_tasks

__all__ = [
    "ACCEPTABLE",
    "Done",
    "JobProgress",
    "Piece",
    "WorkerDevices",
    "accepted",
    "check_absolute",
    "check_on_every_node",
    "choose_environment",
    "cluster_address",
    "cores_for_gpus",
    "differing_environment",
    "forked_workers",
    "gpus_of_worker",
    "how_to_accept",
    "own_device",
    "precision_of",
    "ray_running",
    "run_tasks",
    "split_work",
]
