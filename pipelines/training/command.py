"""The flow that train_tokenizer and train_prior share, from the parsed flags to the last line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from ops.paths import AnyPath
from ops.precision import use_precision
from ops.ranks import Ranks
from ops.runtime import keep_freed_memory, resolve_device, use_threads
from pipelines.flags import TrainingFlags
from pipelines.jobs import own_device
from pipelines.training.flags import parallel_config_of, worker_config_of
from pipelines.training.launch import run_attempts
from pipelines.training.loop import OnStep
from pipelines.training.parallel import ParallelConfig
from pipelines.training.run_folder import RunFolder, opened_run
from pipelines.training.run_record import pin_precision


def set_up_process(
    flags: TrainingFlags, run: RunFolder, ranks: Ranks, shard: bool = False
) -> tuple[torch.device, ParallelConfig]:
    """Set this process's threads, precision and memory allocation; its device, and how it trains.

    The run folder is fetched from an object store, where it lies in one. Rank 0 records the
    precision in run.json, since the driver need not have the workers' devices.
    Raises ConfigError where the device does not exist, or torch cannot use the GPU that this worker
    was given; TrainingError where the run was started in another precision.
    """
    use_threads(flags.threads)
    keep_freed_memory()
    device = own_device(flags.device, on_ray=flags.workers > 0)
    parallel_config = parallel_config_of(flags, ranks, device, shard=shard)
    with ranks.errors_shared():
        run.fetch()
        if ranks.is_first:
            pin_precision(run.folder, parallel_config.precision)
    use_precision(parallel_config.precision)
    return device, parallel_config


def run_training(
    flags: TrainingFlags,
    steps: int,
    start: Callable[[Path, bool], None],
    attempt: Callable[[RunFolder, Ranks, OnStep | None], int],
    reads: Mapping[str, AnyPath],
    next_step: str,
) -> str:
    """Train in --out until `steps` are done; the line to print, which ends with `next_step`.

    `start(folder, begun)` writes into the local run folder what a run needs besides its
    checkpoints, or, where it has begun and has one, checks it. Raises LockedError where another
    process trains in --out, ConfigError for a device that is not there, and what `start` and
    run_attempts raise.
    """
    if not flags.workers:  # workers may have other devices than this machine
        resolve_device(flags.device)
    with opened_run(flags.out) as run:
        start(run.folder, run.steps_done() > 0)
        run.publish_files()
        taken = run_attempts(run, steps, partial(attempt, run), worker_config_of(flags), reads)
    done = f"{taken} steps taken" if taken else "nothing left to do"
    return f"{flags.out}: {done}, {steps} in all; {next_step}"
