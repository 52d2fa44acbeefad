"""The flags of the generate command, and the GenerationRequest made of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ops.config import ConfigError
from ops.paths import ObjectPath
from ops.precision import check_precision
from pipelines.conditioning import ConditionFiles, parse_conditions
from pipelines.flags import GenerateFlags, stall_seconds
from pipelines.generation.settings import (
    GPU_PRECISION,
    MOST_TASKS,
    GenerationRequest,
    default_flush_every_rows,
    default_samples_per_task,
    labels_of,
    saves_of,
)
from pipelines.jobs import WorkerDevices, accepted, choose_environment
from prior import Prior, find_prior
from prior.sampling import (
    DEFAULT_CACHE_MEMORY,
    LARGEST_DEFAULT_BATCH,
    MemoryPlan,
    SamplingSettings,
    plan_memory,
)
from tokenizer import VQGAN


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WIDTHxHEIGHT"; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise ConfigError(f"--size must be WIDTHxHEIGHT in pixels, as 1024x768; found {text!r}.")
    return int(match[1]), int(match[2])


def check_flags(flags: GenerateFlags) -> None:
    """Raise ConfigError for flags that are wrong whatever the prior."""
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers: the number of actors to start there.")
    if flags.preview and isinstance(flags.out, ObjectPath):
        raise ConfigError("--preview writes on local disks only. Leave it out.")
    assert flags.count is not None
    stall_seconds(flags.stall_timeout)
    if flags.only is not None and not 0 <= flags.only < flags.count:
        raise ConfigError(
            f"--only must be from 0 to {flags.count - 1}, --count less 1; found {flags.only}."
        )


def make_request(
    flags: GenerateFlags,
    prior: Prior,
    tokenizer: VQGAN,
    record: Mapping[str, Any] | None,
    devices: WorkerDevices,
    given: Sequence[ConditionFiles] = (),
) -> GenerationRequest:
    """The request of the flags; raises ConfigError for what is not possible.

    They have a prior, a size and a count, see with_defaults. Others that are not given take the
    recorded values. `given` are inputs of further conditions.
    """
    assert flags.prior is not None
    assert flags.size is not None
    assert flags.count is not None
    width, height = parse_size(flags.size)
    factor = tokenizer.config.downsample_factor
    rows, columns = -(-height // factor), -(-width // factor)  # the surplus is cropped
    known = record or {}
    count = max(flags.count, known.get("count", 0))
    environment = choose_environment(
        flags.device,
        flags.precision,
        begun=record,
        accept=accepted(flags.accept, flags.allow_mixed),
        resolve=partial(devices.resolve, gpus_per_worker=flags.gpus_per_worker),
        gpu_precision=GPU_PRECISION,
    )
    plan = MemoryPlan(min(flags.count, LARGEST_DEFAULT_BATCH), DEFAULT_CACHE_MEMORY)
    if devices.type_of(environment["device"]) == "cuda" and record is None:
        plan = memory_plan_of(flags, prior, (rows, columns), environment, devices) or plan
    batch_size, cache_memory = flags.batch_size, flags.cache_memory
    if batch_size is None:
        batch_size = known.get("batch_size", plan.batch_size)
    if cache_memory == "auto":
        cache_memory = known.get("cache_memory", plan.cache_memory) / 2**30
    samples_per_task = flags.samples_per_task
    if samples_per_task == "auto":
        samples_per_task = known.get(
            "samples_per_task", default_samples_per_task(count, batch_size)
        )
    if samples_per_task < 1 or samples_per_task % batch_size:
        raise ConfigError(
            f"--samples-per-task must be a multiple of the batch size of {batch_size}, "
            f"found {samples_per_task}."
        )
    if count > MOST_TASKS * samples_per_task:
        raise ConfigError(
            f"{count:,} samples, {samples_per_task} a task, would be too many files. Name another "
            "--out, or a larger --samples-per-task there."
        )
    return GenerationRequest(
        prior=find_prior(flags.prior).absolute(),
        out=flags.out.absolute(),
        width=width,
        height=height,
        rows=rows,
        columns=columns,
        codebook_size=prior.config.codebook_size,
        count=count,
        seed=flags.seed,
        stride=prior.config.default_stride if flags.stride is None else flags.stride,
        batch_size=batch_size,
        samples_per_task=samples_per_task,
        save=saves_of(flags.save),
        labels=labels_of(flags.labels, prior),
        condition_inputs=(*parse_conditions(flags.condition, prior.conditions), *given),
        sampling=sampling_settings(flags, prior),
        cache_memory=int(cache_memory * 2**30),
        flush_every_rows=flush_every_rows_of(flags, prior, rows, columns),
        device=environment["device"],
        precision=check_precision(environment["precision"]),
        threads=flags.threads,
        preview=flags.preview,
    )


def memory_plan_of(
    flags: GenerateFlags,
    prior: Prior,
    shape: tuple[int, int],
    environment: Mapping[str, str],
    devices: WorkerDevices,
) -> MemoryPlan | None:
    """What the memory of the workers' GPUs allows; None where their memory is not known."""
    memory, share = devices.gpu_memory(environment["device"]), flags.gpus_per_worker
    if memory is None:
        return None
    return plan_memory(
        prior.config,
        int(memory * (1 if share == "auto" else min(1.0, share))),
        shape=shape,
        stride=flags.stride,
        guides=sampling_settings(flags, prior).guides,
        precision=check_precision(environment["precision"]),
        count=flags.batch_size or flags.count or 1,
    )


def sampling_settings(flags: GenerateFlags, prior: Prior) -> SamplingSettings:
    """The settings that the flags name; for others those that the prior recommends."""
    names = [field.name for field in dataclasses.fields(SamplingSettings)]
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    return SamplingSettings(**{**prior.recommended, **given})


def flush_every_rows_of(flags: GenerateFlags, prior: Prior, rows: int, columns: int) -> int | None:
    """Rows between two flushes; None for whole samples."""
    if flags.keep_rows != "auto":
        return flags.keep_rows
    return default_flush_every_rows(rows, columns, prior.config.window)
