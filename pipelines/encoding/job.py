"""encode_tasks: the tasks of one track, in this process or on Ray actors, with progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from ops.paths import AnyPath
from ops.runtime import num_cores, threads_restored
from pipelines.console import progress_bar
from pipelines.encoding.settings import run_environment
from pipelines.encoding.worker import EncodeWorker, quarantine
from pipelines.flags import EncodeFlags, stall_seconds
from pipelines.jobs import (
    Done,
    JobProgress,
    Piece,
    WorkerDevices,
    cores_for_gpus,
    gpus_of_worker,
    run_tasks,
    split_work,
)
from pipelines.planning import Plan, Task


def encode_tasks(
    root: AnyPath,
    flags: EncodeFlags,
    plan: Plan,
    tasks: Sequence[Task],
    reads: Mapping[str, AnyPath],
    devices: WorkerDevices,
) -> None:
    """Encode and commit tasks of the store at `root`, or of the track whose directory that is.

    `reads` are the paths, by flag, that every node of a cluster must see. Raises ConfigError where
    the workers do not have the device, what run_tasks raises.
    """
    if not tasks:
        return
    devices.connect()
    environment = run_environment(flags, plan.settings.track, devices)
    track = plan.settings.track | environment
    on_gpu = torch.device(track["device"]).type != "cpu"
    gpus = gpus_of_worker(flags.gpus_per_worker, track["device"])
    cpus = _cpus(flags, gpus, on_gpu)
    concurrent_batches = 1 if on_gpu else _concurrent_batches(cpus, track["threads"])
    with progress_bar("image") as progress, threads_restored():
        num_rows = sum(task.num_rows for task in tasks)
        doing = "encoding" if plan.track == "image" else f"encoding {plan.track}"
        bar = progress.add_task(doing, total=num_rows, note="", bad=0)
        job = JobProgress(lambda done: progress.update(bar, completed=done.rows, bad=done.failed))

        def on_result(piece: Piece[Task], done: Done) -> None:
            job.add(done)

        run_tasks(
            [Piece(task=task, first=0, end=task.num_rows) for task in tasks],
            partial(EncodeWorker, root, concurrent_batches, cpus + (not on_gpu), environment),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=cpus if flags.workers else 1,
            gpus_per_worker=gpus,
            address=flags.address,
            # While one task commits, the next is encoded. On a GPU small tasks take less time than
            # their commit, so that two may have to wait for the disk.
            overlap=3 if on_gpu else 2,
            split=partial(split_work, batch_size=track["batch_size"]),
            give_up=partial(quarantine, root, plan),
            proven=len(tasks) < len(plan.tasks),
            reads=reads,
            writes={"--out": root},
            on_progress=job.update,
            stall_timeout=stall_seconds(flags.stall_timeout),
        )


def _cpus(flags: EncodeFlags, gpus: float, on_gpu: bool) -> int:
    """CPU cores that one process may use."""
    if not flags.workers:
        return num_cores() if on_gpu else torch.get_num_threads()
    if flags.cpus_per_worker != "auto":
        return flags.cpus_per_worker
    return cores_for_gpus(gpus) if on_gpu else 1


def _concurrent_batches(cpus: int, threads: int) -> int:
    """Forward passes that run in parallel in one process on CPUs."""
    return max(1, cpus // threads)
