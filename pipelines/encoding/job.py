"""encode_tasks: the tasks of one track, in this process or on Ray actors, with progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from ops.runtime import threads_restored
from pipelines.console import progress_bar
from pipelines.encoding.flags import EncodeFlags
from pipelines.encoding.settings import run_environment
from pipelines.encoding.worker import EncodeWorker, quarantine
from pipelines.jobs import (
    Done,
    JobProgress,
    Piece,
    WorkerDevices,
    gpus_of_worker,
    run_tasks,
    split_work,
)
from pipelines.planning import Plan, Task


def encode_tasks(
    root: Path,
    flags: EncodeFlags,
    plan: Plan,
    tasks: Sequence[Task],
    reads: Mapping[str, Path],
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
    concurrent_batches = 1 if on_gpu else _concurrent_batches(flags, track["threads"])
    with progress_bar("image") as progress, threads_restored():
        num_rows = sum(task.num_rows for task in tasks)
        doing = "encoding" if plan.track == "image" else f"encoding {plan.track}"
        bar = progress.add_task(doing, total=num_rows, note="", bad=0)
        job = JobProgress(lambda done: progress.update(bar, completed=done.rows, bad=done.failed))

        def on_result(piece: Piece[Task], done: Done) -> None:
            job.add(done)

        run_tasks(
            [Piece(task=task, first=0, end=task.num_rows) for task in tasks],
            partial(EncodeWorker, root, concurrent_batches, _cpus(flags) + 1, environment),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=flags.cpus_per_worker,
            gpus_per_worker=gpus_of_worker(flags.gpus_per_worker, track["device"]),
            address=flags.address,
            overlap=2,
            split=partial(split_work, batch_size=track["batch_size"]),
            give_up=partial(quarantine, root, plan),
            proven=len(tasks) < len(plan.tasks),
            reads=reads,
            writes={"--out": root},
            on_progress=job.update,
        )


def _cpus(flags: EncodeFlags) -> int:
    """CPU cores that one process may use."""
    return flags.cpus_per_worker if flags.workers else torch.get_num_threads()


def _concurrent_batches(flags: EncodeFlags, threads: int) -> int:
    """Forward passes that run in parallel in one process on CPUs."""
    return max(1, _cpus(flags) // threads)
