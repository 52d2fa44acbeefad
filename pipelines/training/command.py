"""The flow that train_tokenizer and train_prior share, from the parsed flags to the last line."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ops.checkpoint import newest_step
from ops.files import exclusive_lock
from ops.paths import AnyPath
from ops.precision import use_precision
from ops.ranks import Ranks
from ops.runtime import keep_freed_memory, resolve_device, use_threads
from pipelines.flags import TrainingFlags
from pipelines.jobs import own_device
from pipelines.training.flags import parallel_config_of, worker_config_of
from pipelines.training.launch import Attempt, run_attempts
from pipelines.training.parallel import ParallelConfig
from pipelines.training.run_record import pin_precision


def set_up_process(
    flags: TrainingFlags, ranks: Ranks, shard: bool = False
) -> tuple[torch.device, ParallelConfig]:
    """Set this process's threads, precision and memory allocation; its device, and how it trains.

    Rank 0 records the precision in run.json, since the driver need not have the workers' devices.
    Raises ConfigError where the device does not exist, or torch cannot use the GPU that this worker
    was given; TrainingError where the run was started in another precision.
    """
    use_threads(flags.threads)
    keep_freed_memory()
    device = own_device(flags.device, on_ray=flags.workers > 0)
    parallel_config = parallel_config_of(flags, ranks, device, shard=shard)
    with ranks.errors_shared():
        if ranks.is_first:
            pin_precision(flags.out, parallel_config.precision)
    use_precision(parallel_config.precision)
    return device, parallel_config


def run_training(
    flags: TrainingFlags,
    steps: int,
    start: Callable[[bool], None],
    attempt: Attempt,
    reads: Mapping[str, AnyPath],
    next_step: str,
) -> str:
    """Train in --out until `steps` are done; the line to print, which ends with `next_step`.

    `start(begun)` writes into the run folder what a run needs besides its checkpoints, or, where it
    has begun and has one, checks it. Raises LockedError where another process trains in --out,
    ConfigError for a device that is not there, and what `start` and run_attempts raise.
    """
    if not flags.workers:  # workers may have other devices than this machine
        resolve_device(flags.device)
    with exclusive_lock(flags.out / ".lock"):
        start(newest_step(flags.out) is not None)
        taken = run_attempts(flags.out, steps, attempt, worker_config_of(flags), reads)
    done = f"{taken} steps taken" if taken else "nothing left to do"
    return f"{flags.out}: {done}, {steps} in all; {next_step}"
