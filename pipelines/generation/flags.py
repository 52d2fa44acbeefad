"""The flags of the generate command, and the GenerationRequest made of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import tyro

from ops.config import ConfigError, Count, Range, Seed
from ops.paths import ObjectPath
from ops.precision import check_precision
from pipelines.conditioning import ConditionFiles, parse_conditions, sampling_help
from pipelines.console import PathOrURI, StorageOptions
from pipelines.generation.settings import (
    GPU_PRECISION,
    MOST_TASKS,
    GenerationRequest,
    default_flush_every_rows,
    default_samples_per_task,
    labels_of,
    saves_of,
)
from pipelines.jobs import (
    STALL_TIMEOUT,
    Accept,
    WorkerDevices,
    accepted,
    choose_environment,
    stall_seconds,
)
from prior import Prior, find_prior
from prior.sampling import (
    DEFAULT_CACHE_MEMORY,
    LARGEST_DEFAULT_BATCH,
    MemoryPlan,
    SamplingSettings,
    plan_memory,
)
from tokenizer import VQGAN


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Generate images with a prior, any number of them, by any number of workers.

    Run it again to resume, or with a larger --count for more. The folder `index` has a line for
    each sample, to be read by pyarrow.parquet; generation.json has the settings that decide them.
    """

    out: PathOrURI
    """the folder of samples to create or extend; s3:// and gs:// too"""
    prior: PathOrURI | None = None
    """the run folder that pipelines.train_prior wrote, which has the tokenizer too, or the name of
    a bundled prior (default: clothing, where it is bundled, and photo-upscale4 as --upscale)"""
    upscale: PathOrURI | None = None
    """a prior with the condition low_res, by name or folder: --prior samples each image whole, in
    one window, and this one enlarges it, again and again up to --size"""
    upscale_temperature: float | None = None
    """sampling temperature of --upscale (default: what it recommends, else 1)"""
    upscale_top_p: float | None = None
    """top-p of --upscale (default: what it recommends, else no limit)"""
    count: Annotated[int, Range(least=1, most=10**10)] | None = None
    """number of samples in the folder (default: that of the folder, or of the images of
    --condition low_res, else 4)"""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, any size; larger ones are sampled with a sliding window (default:
    that of the folder; or the size on which the prior was trained, with --condition low_res that of
    the images enlarged by the prior's ratio; with --upscale, enlarged once more)"""
    seed: Seed = 0
    """random seed: another seed gives other images"""
    save: tuple[str, ...] = ("images",)
    """what to write, as images,codes: images (sample-00000.png, ... and grid.png), codes (a
    code store, codes.zarr, whose row k is sample k), tars (WebDataset tars)"""
    stride: int | None = None
    """step of the sliding window in codes; 1 is slowest and most exact (default: half a window);
    not for priors without a window"""
    batch_size: Count | None = None
    """samples per batch (default: count, at most 8; on a GPU what fits its memory, at most 64);
    affects rounding, so it is recorded. A worker samples whole batches"""
    samples_per_task: Count | Literal["auto"] = "auto"
    """samples per task, a multiple of the batch size: a task has one tar, one shard of codes and
    one index file; recorded in the folder"""
    only: int | None = None
    """generate only the sample with this number, 0 for the first"""
    labels: tuple[str, ...] = ()
    """classes, by name or number, as 3,7 or as lake wood, assigned to the samples in turn"""
    condition: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help=sampling_help())
    ] = ()
    temperature: float | None = None
    """sampling temperature: below 1 favours probable codes; 0 always takes the most probable. The
    default of this and the next flags is what the prior's config.json recommends, else 1, no
    limits, and no guidance"""
    top_k: int | None = None
    """draw from the k most probable codes only"""
    top_p: float | None = None
    """draw from the most probable codes that together have this probability"""
    min_p: float | None = None
    """draw from the codes with at least this share of the most probable code's probability"""
    guidance_scale: float | None = None
    """classifier-free guidance: above 1 follows labels and conditions more closely; doubles the
    work"""
    guidance_schedule: Literal["constant", "power-cosine"] | None = None
    """power-cosine: guidance rises from none at a window's first code to the full scale at its
    last"""
    guidance_power: float | None = None
    """for power-cosine: the higher, the later guidance rises"""
    cache_memory: Annotated[float, Range(least=0, most=2**20)] | Literal["auto"] = "auto"
    """GiB of KV caches per worker; with less, more is recomputed. Affects rounding, so it is
    recorded. auto: 4, on a GPU what a batch leaves of its memory"""
    keep_rows: Count | Literal["auto"] = "auto"
    """rows of codes after which the rows done so far are saved, so that a killed run resumes there;
    best a multiple of the window. Affects rounding, except for priors without a window. auto:
    several windows, on canvases of a megapixel and more"""
    preview: bool = False
    """write preview.png of the current sample every few seconds"""
    retry_failed: bool = False
    """retry samples that are recorded as crashed or stalled because of what became of their
    workers"""
    accept: Accept = ()
    """go on with a folder that was begun on another kind of device (GPU or CPU), in another
    precision or by another version of torch: the new samples are then rounded otherwise; the index
    records for all samples what they were made with, down to the model of the GPU"""
    allow_mixed: bool = False
    """the same as --accept with everything it can name"""
    workers: Annotated[int, Range(least=0, most=2**16)] = 0
    """Ray actors that are wanted to generate: those that fit start, others when nodes join the
    cluster. 0 generates in one child process. Both give the same bytes"""
    cpus_per_worker: Annotated[int, Range(least=1, most=1024)] | None = None
    """CPU cores per actor (default: --threads)"""
    gpus_per_worker: Annotated[float, Range(least=0, most=1024)] | Literal["auto"] = "auto"
    """GPUs, or a fraction of one, per actor; auto is 1 on a GPU, else 0"""
    address: str | None = None
    """address of a running Ray cluster; --prior and --out must be visible to all its nodes; the
    driver itself needs no GPU"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N (without --workers), of the workers; its kind is recorded. auto: a
    GPU where the cluster, or without --workers this machine, has one"""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """of the products of the prior and of the decoder; recorded. auto: float32 on a CPU, bfloat16
    on a GPU, where the decoder of pixels then runs in tf32. A CPU has no tf32 and takes float32.
    Codes are drawn from float32 logits. On one model of GPU, with the same versions of torch and
    cuDNN, samples are the same bit for bit; on other models or versions they are other samples of
    the same distribution"""
    threads: Annotated[int, Range(least=1, most=1024)] = 1
    """CPU threads per worker; affects rounding, so it is recorded"""
    stall_timeout: str = STALL_TIMEOUT
    """seconds, or 90s, 10m, 1.5h: a worker that makes no progress for so long is killed and its
    task tried again. A sample that stalls every time is recorded as stalled"""
    storage_option: StorageOptions = ()


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
