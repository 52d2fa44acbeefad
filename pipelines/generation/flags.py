"""What the generate command is asked for, and the request that comes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ops.config import ConfigError
from pipelines.conditioning import parse_conditions
from pipelines.generation.settings import (
    MOST_TASKS,
    GenerationRequest,
    default_flush_every_rows,
    good_samples_per_task,
    labels_of,
    saves_of,
)
from prior import Prior
from prior.sampling import DEFAULT_CACHE_MEMORY, LARGEST_DEFAULT_BATCH, SamplingSettings
from tokenizer import VQGAN


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Paint samples with a prior; as many as you like, by as many workers as you have.

    Run it again to resume, or with a larger --count for more. The folder `index` has a line for
    each sample, to be read by pyarrow.parquet; generation.json says what decided them.
    """

    prior: Path
    """the run folder that pipelines.train_prior wrote; it holds the tokenizer too"""
    out: Path
    """the folder of samples to make or to go on with"""
    count: int = 4
    """how many samples the folder shall hold"""
    size: str = "256x256"
    """WIDTHxHEIGHT in pixels; any size, larger ones are painted through a sliding window"""
    seed: int = 0
    """another seed, other pictures"""
    save: tuple[str, ...] = ("images",)
    """what is kept of them, as images,codes: images (sample-00000.png, ... and grid.png), codes (a
    code store, codes.zarr, whose row k is sample k), tars (WebDataset tars)"""
    stride: int | None = None
    """how far the window slides, in codes; 1 is slowest and most exact (default: half a window);
    not for priors that need no window"""
    batch_size: int | None = None
    """samples painted at once (default: count, at most 8); part of what decides a picture"""
    samples_per_task: int | Literal["auto"] = "auto"
    """samples that one worker paints and one tar, one shard of codes, one file of the index holds:
    whole batches; recorded in the folder"""
    only: int | None = None
    """paint this one sample of the count, 0 for the first"""
    labels: tuple[str, ...] = ()
    """classes, by name or number, as 3,7 or as lake wood, dealt out to the samples in turn"""
    condition: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=PATH of what the prior was trained to be told: segmentation, depth, low_res, inpaint
    (holes are transparent), boxes, keypoints (JSON lines, in pixels of the picture); and, of any
    prior, half: the upper half is that of the picture. PATH is a file, or a folder of files that
    are dealt out to the samples in turn; once for each condition"""
    temperature: float = 1.0
    """below 1 likelier codes, above 1 stranger ones; 0 always takes the likeliest"""
    top_k: int | None = None
    """draw from the k likeliest codes only"""
    top_p: float | None = None
    """draw from the likeliest codes that together have this probability"""
    min_p: float | None = None
    """draw from the codes that are at least this many times as probable as the likeliest"""
    guidance_scale: float = 1.0
    """above 1 exaggerates what labels and conditions ask for; doubles the work"""
    guidance_schedule: Literal["constant", "power-cosine"] = "constant"
    """power-cosine: guidance rises from none at a window's first code to the whole at its last"""
    guidance_power: float = 1.0
    """of power-cosine: the higher, the later it rises"""
    cache_memory: float = DEFAULT_CACHE_MEMORY / 2**30
    """GiB that a worker may keep of what the prior has read; with less, more is read anew. Part of
    what decides a picture's last bits"""
    keep_rows: int | Literal["auto"] = "auto"
    """rows of codes, whole windows best, after which painting rests and what is done outlasts a
    kill; part of what decides last bits, but not of priors that need no window. With auto several
    windows, on canvases of a megapixel and more"""
    preview: bool = False
    """keep preview.png at how far the sample being painted is, while it grows"""
    retry_failed: bool = False
    """try the samples once more that were given up because they killed their workers"""
    workers: int = 0
    """Ray actors that paint side by side; 0 paints in this process. Both give the same bytes"""
    cpus_per_worker: int | None = None
    """CPU cores each actor is given (default: --threads)"""
    gpus_per_worker: float | Literal["auto"] = "auto"
    """share of a GPU each actor is given; with auto 1 on a GPU, else 0"""
    address: str | None = None
    """address of a running Ray cluster; --prior and --out must be visible to all its nodes"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 1
    """CPU threads a worker paints with; part of what decides a picture's last bits"""


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WIDTHxHEIGHT"; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise ConfigError(f"--size must be WIDTHxHEIGHT in pixels, as 1024x768; found {text!r}.")
    return int(match[1]), int(match[2])


def check_flags(flags: GenerateFlags) -> None:
    """Raise ConfigError for what cannot be, whatever the prior."""
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers: how many actors shall paint there?")
    least = {"count": 1, "workers": 0, "threads": 1, "batch_size": 1, "cpus_per_worker": 1}
    least |= {"gpus_per_worker": 0, "cache_memory": 0, "keep_rows": 1}
    for name, smallest in least.items():
        value = getattr(flags, name)
        if value not in (None, "auto") and value < smallest:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} must be at least {smallest}, found {value}.")
    if flags.only is not None and not 0 <= flags.only < flags.count:
        raise ConfigError(
            f"--only must be from 0 to {flags.count - 1}, --count less 1; found {flags.only}."
        )


def make_request(
    flags: GenerateFlags, prior: Prior, tokenizer: VQGAN, record: Mapping[str, Any] | None
) -> GenerationRequest:
    """The flags with their defaults filled in; raises ConfigError for what cannot be.

    What is recorded stands where nothing is asked for, so that --count may grow.
    """
    width, height = parse_size(flags.size)
    factor = tokenizer.config.downsample_factor
    rows, columns = -(-height // factor), -(-width // factor)  # what is too much is cut off
    known = record or {}
    count = max(flags.count, known.get("count", 0))
    batch_size = flags.batch_size
    if batch_size is None:
        batch_size = known.get("batch_size", min(flags.count, LARGEST_DEFAULT_BATCH))
    samples_per_task = flags.samples_per_task
    if samples_per_task == "auto":
        samples_per_task = known.get("samples_per_task", good_samples_per_task(count, batch_size))
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
        prior=flags.prior.absolute(),
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
        condition_inputs=parse_conditions(flags.condition, prior.conditions),
        sampling=SamplingSettings(
            temperature=flags.temperature,
            top_k=flags.top_k,
            top_p=flags.top_p,
            min_p=flags.min_p,
            guidance_scale=flags.guidance_scale,
            guidance_schedule=flags.guidance_schedule,
            guidance_power=flags.guidance_power,
        ),
        cache_memory=int(flags.cache_memory * 2**30),
        flush_every_rows=flush_every_rows_of(flags, prior, rows, columns),
        device=flags.device,
        threads=flags.threads,
        preview=flags.preview,
    )


def flush_every_rows_of(flags: GenerateFlags, prior: Prior, rows: int, columns: int) -> int | None:
    """Rows after which painting rests, if it does."""
    if flags.keep_rows != "auto":
        return flags.keep_rows
    return default_flush_every_rows(rows, columns, prior.config.window)
