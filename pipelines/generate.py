#!/usr/bin/env python
"""Paint pictures with a trained prior: python -m pipelines.generate --prior RUN --out DIR.

A picture depends on the recorded settings, the seed and its number alone, so any run of any worker
paints the same one. Run again, it paints what is missing.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ops.checkpoint import fingerprint
from ops.config import ConfigError, to_json
from ops.files import write_json
from ops.images import MAX_PIXELS, decode_image, image_grid, resize_and_crop, write_png
from ops.runtime import resolve_device
from pipelines.cluster_paths import check_absolute
from pipelines.command_line import run_command
from pipelines.jobs import run_tasks
from pipelines.paint_worker import (
    PaintRequest,
    PaintWorker,
    find_tokenizer,
    grid_for,
    is_painted,
    sample_paths,
)
from pipelines.progress import progress_bar
from prior import Prior, load_prior
from prior.paint_options import LARGEST_DEFAULT_BATCH

GRID_PICTURES = 64
GRID_SIDE = 256  # pixels; larger pictures are shrunk for the grid


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Paint pictures with a prior: PNG files, their codes, the settings, and a grid of all."""

    prior: Path
    """the run folder that pipelines.train_prior wrote; it holds the tokenizer too"""
    out: Path
    """folder for sample-00000.png, sample-00000.npy (codes), ..., grid.png, generation.json"""
    count: int = 4
    """how many pictures the folder shall hold"""
    size: str = "256x256"
    """WIDTHxHEIGHT in pixels; any size, larger ones are painted through a sliding window"""
    seed: int = 0
    """another seed, other pictures"""
    stride: int | None = None
    """how far the window slides, in codes; 1 is slowest and most exact (default: half a window)"""
    batch_size: int | None = None
    """pictures painted at once (default: count, at most 8); part of what decides a picture"""
    only: int | None = None
    """paint this one picture of the count, 0 for the first"""
    labels: tuple[str, ...] = ()
    """classes, by name or number, dealt out to the pictures in turn"""
    temperature: float = 1.0
    """below 1 likelier codes, above 1 stranger ones; 0 always takes the likeliest"""
    top_k: int | None = None
    """draw from the k likeliest codes only"""
    top_p: float | None = None
    """draw from the likeliest codes that together have this probability"""
    guidance_scale: float = 1.0
    """above 1 exaggerates what the labels ask for; doubles the work"""
    workers: int = 0
    """Ray actors that paint side by side; 0 paints in this process"""
    address: str | None = None
    """address of a running Ray cluster; --prior and --out must be visible to all its nodes"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 1
    """CPU threads a worker; part of what decides a picture's last bits"""


class Where(NamedTuple):
    """Where tasks run, as run_tasks takes it."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    address: str | None


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WIDTHxHEIGHT"; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise ConfigError(f"--size must be WIDTHxHEIGHT in pixels, as 1024x768; found {text!r}.")
    return int(match[1]), int(match[2])


def read_record(out: Path) -> dict[str, Any] | None:
    """The settings that the pictures in `out` were made with, or None where there are none."""
    path = out / "generation.json"
    if path.exists() and any(out.glob("sample-*.png")):
        return json.loads(path.read_text())
    return None


def make_request(
    flags: GenerateFlags, prior: Prior, record: Mapping[str, Any] | None
) -> PaintRequest:
    """The flags with their defaults filled in; raises ConfigError for what cannot be.

    A recorded batch_size stands where none is asked for, so that --count may grow.
    """
    if flags.count < 1 or flags.workers < 0 or flags.threads < 1:
        raise ConfigError("--count and --threads must be at least 1, --workers at least 0.")
    if flags.only is not None and not 0 <= flags.only < flags.count:
        raise ConfigError(
            f"--only must be from 0 to {flags.count - 1}, --count less 1; found {flags.only}."
        )
    if flags.batch_size is not None and flags.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, found {flags.batch_size}.")
    width, height = parse_size(flags.size)
    default_batch = record["batch_size"] if record else min(flags.count, LARGEST_DEFAULT_BATCH)
    return PaintRequest(
        prior=flags.prior.absolute(),
        out=flags.out.absolute(),
        width=width,
        height=height,
        seed=flags.seed,
        stride=max(1, prior.config.window // 2) if flags.stride is None else flags.stride,
        batch_size=default_batch if flags.batch_size is None else flags.batch_size,
        labels=tuple(prior.conditions.label_number(label) for label in flags.labels),
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        guidance_scale=flags.guidance_scale,
        device=flags.device,
        threads=flags.threads,
    )


def deciding_settings(request: PaintRequest, prior: Prior) -> dict[str, Any]:
    """All that a picture is a function of, beside its number."""
    settings = to_json(request)
    for name in ("prior", "out", "device"):
        del settings[name]
    return {
        "prior_fingerprint": fingerprint(to_json(prior.config), prior.model.state_dict()),
        "tokenizer_fingerprint": prior.tokenizer_info["fingerprint"],
        **settings,
        "device": resolve_device(request.device).type,
        "torch": torch.__version__,
    }


def check_record(out: Path, record: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming what differs, unless the pictures in `out` have these settings."""
    differing = [
        f"{name} was {record.get(name)!r}, is {value!r}"
        for name, value in settings.items()
        if record.get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"The pictures in {out} were made with other settings: {'; '.join(differing)}. "
            "Use the same to paint what is missing, or another --out."
        )


def missing_batches(request: PaintRequest, wanted: range) -> list[tuple[int, ...]]:
    """The samples of `wanted` that are not painted yet, each batch's together."""
    batches: dict[int, list[int]] = {}
    for sample in wanted:
        if not is_painted(request.out, sample):
            batches.setdefault(sample // request.batch_size, []).append(sample)
    return [tuple(samples) for samples in batches.values()]


def paint(request: PaintRequest, batches: list[tuple[int, ...]], codes: int, where: Where) -> None:
    """Paint every batch, behind a progress bar that counts codes, `codes` for each picture."""
    with progress_bar("code") as bar:
        total = codes * sum(map(len, batches))
        task = bar.add_task("painting", total=total, note="")
        here = where.workers == 0

        def after_batch(samples: tuple[int, ...], _: int) -> None:
            for sample in samples:
                _require_painted(request.out, sample)
            if not here:
                bar.advance(task, codes * len(samples))

        run_tasks(
            batches,
            partial(PaintWorker, request, partial(bar.advance, task) if here else None),
            on_result=after_batch,
            reads={"--prior": request.prior},
            writes={"--out": request.out},
            **where._asdict(),
        )


def _require_painted(out: Path, sample: int) -> None:
    # A worker on another machine may have written into a folder of the same name there.
    if not is_painted(out, sample):
        raise ConfigError(
            f"A worker painted sample {sample}, but it is not in {out}. Name an --out that every "
            "machine of the cluster shares."
        )


def write_grid(out: Path, samples: range, width: int, height: int) -> None:
    """Write grid.png of those of `samples` that are painted; nothing where there are below two."""
    painted = [sample for sample in samples if is_painted(out, sample)][:GRID_PICTURES]
    if len(painted) < 2 or width * height > MAX_PIXELS:
        return
    scale = min(1.0, GRID_SIDE / max(width, height))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = (decode_image(sample_paths(out, sample)[1].read_bytes()) for sample in painted)
    small = np.stack([resize_and_crop(picture, size) for picture in pictures])
    write_png(out / "grid.png", image_grid(small, columns=math.ceil(math.sqrt(len(painted)))))


def run(flags: GenerateFlags) -> int:
    check_absolute({"--prior": flags.prior, "--out": flags.out})
    prior = load_prior(flags.prior)
    tokenizer = find_tokenizer(flags.prior, prior, torch.device("cpu"))
    record = read_record(flags.out)
    request = make_request(flags, prior, record)
    settings = deciding_settings(request, prior)
    if record is None:
        write_json(flags.out / "generation.json", settings)
    else:
        check_record(flags.out, record, settings)
    rows, columns = grid_for(request.height, request.width, tokenizer)
    del prior, tokenizer  # the workers load their own
    wanted = range(flags.count) if flags.only is None else range(flags.only, flags.only + 1)
    batches = missing_batches(request, wanted)
    if batches:
        paint(request, batches, rows * columns, placement(flags))
    if batches or not (flags.out / "grid.png").exists():
        write_grid(flags.out, range(flags.count), request.width, request.height)
    new = sum(map(len, batches))
    done = f"{new} painted" if new else "nothing left to do"
    print(f"{flags.out}: {done}, {len(wanted) - new} were there; {flags.size} pixels each")
    return 0


def placement(flags: GenerateFlags) -> Where:
    """Where the tasks run: here, or on that many actors, each with a GPU where one is asked for."""
    on_gpu = flags.device.startswith("cuda") or (
        flags.device == "auto" and torch.cuda.is_available()
    )
    return Where(flags.workers, flags.threads, 1 if on_gpu else 0, flags.address)


def main(argv: list[str] | None = None) -> int:
    return run_command(GenerateFlags, run, argv, "pipelines.generate")


if __name__ == "__main__":
    sys.exit(main())
