#!/usr/bin/env python
"""Paint pictures with a trained prior: python -m pipelines.generate --prior RUN --out DIR.

A picture depends on the recorded settings, the seed and its number alone, so any run of any worker
paints the same one. Run again, it paints what is missing.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ops.config import ConfigError
from ops.files import exclusive_lock, write_json
from ops.images import MAX_PIXELS, decode_image, image_grid, resize_and_crop, write_png
from pipelines.cluster_paths import check_absolute
from pipelines.command_line import run_command
from pipelines.jobs import run_tasks
from pipelines.paint_settings import (
    MOST_TASKS,
    PaintRequest,
    check_record,
    deciding_settings,
    good_samples_per_task,
    labels_of,
    read_record,
    record_path,
    saves_of,
)
from pipelines.paint_worker import (
    Done,
    PaintTask,
    PaintWorker,
    condemn,
    find_tokenizer,
    split_work,
)
from pipelines.painted_store import finish_store, prepare_store
from pipelines.progress import progress_bar
from pipelines.sample_index import failed_lines, part_path, read_parts, sample_name
from pipelines.sample_outputs import picture_path
from pipelines.sample_resume import (
    Folder,
    empty_staging,
    kept_samples,
    lock_path,
    remove_partials,
)
from prior import Prior, load_prior
from prior.paint_options import DEFAULT_CACHE_MEMORY, LARGEST_DEFAULT_BATCH
from prior.sampling import SamplingSettings
from tokenizer import VQGAN

GRID_PICTURES = 64
GRID_SIDE = 256  # pixels; larger pictures are shrunk for the grid
LISTED = 20  # failed samples named at the end; the index names all


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
    temperature: float = 1.0
    """below 1 likelier codes, above 1 stranger ones; 0 always takes the likeliest"""
    top_k: int | None = None
    """draw from the k likeliest codes only"""
    top_p: float | None = None
    """draw from the likeliest codes that together have this probability"""
    min_p: float | None = None
    """draw from the codes that are at least this many times as probable as the likeliest"""
    guidance_scale: float = 1.0
    """above 1 exaggerates what the labels ask for; doubles the work"""
    guidance_schedule: Literal["constant", "power-cosine"] = "constant"
    """power-cosine: guidance rises from none at a window's first code to the whole at its last"""
    guidance_power: float = 1.0
    """of power-cosine: the higher, the later it rises"""
    cache_memory: float = DEFAULT_CACHE_MEMORY / 2**30
    """GiB that a worker may keep of what the prior has read; with less, more is read anew. Part of
    what decides a picture's last bits"""
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


def main(argv: list[str] | None = None) -> int:
    return run_command(GenerateFlags, run, argv, "pipelines.generate")


def run(flags: GenerateFlags) -> int:
    """Paint what the folder lacks, print what came of it; the exit code."""
    check_absolute({"--prior": flags.prior, "--out": flags.out})
    check_flags(flags)
    prior = load_prior(flags.prior)
    tokenizer = find_tokenizer(flags.prior, prior, torch.device("cpu"))
    with exclusive_lock(lock_path(flags.out)):
        record = read_record(flags.out)
        request = make_request(flags, prior, tokenizer, record)
        settings = deciding_settings(request, prior)
        if record is not None:
            check_record(flags.out, record, settings)
        remove_partials(request.out)
        wanted = range(flags.count) if flags.only is None else range(flags.only, flags.only + 1)
        folder = Folder(request, read_parts(request.out), flags.retry_failed)
        tasks = folder.unfinished(wanted)
        new = 0
        if tasks:
            grid_path(request.out).unlink(missing_ok=True)  # it shows what there was
            write_json(record_path(request.out), {**settings, "count": request.count})
            if "codes" in request.save:
                prepare_store(request, tokenizer, label_names(prior), settings)
            for task in tasks:
                folder.reopen(task)
            new = paint(request, tasks, flags, proven=bool(folder.parts))
        finish(request)
        return report(flags, request, wanted, new)


# --- before


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
    least |= {"gpus_per_worker": 0, "cache_memory": 0}
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
) -> PaintRequest:
    """The flags with their defaults filled in; raises ConfigError for what cannot be.

    What is recorded stands where nothing is asked for, so that --count may grow.
    """
    width, height = parse_size(flags.size)
    factor = tokenizer.config.downsample_factor
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
    return PaintRequest(
        prior=flags.prior.absolute(),
        out=flags.out.absolute(),
        width=width,
        height=height,
        rows=-(-height // factor),  # what is too much is cut off
        columns=-(-width // factor),
        codebook_size=prior.config.codebook_size,
        count=count,
        seed=flags.seed,
        stride=prior.config.default_stride if flags.stride is None else flags.stride,
        batch_size=batch_size,
        samples_per_task=samples_per_task,
        save=saves_of(flags.save),
        labels=labels_of(flags.labels, prior),
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
        device=flags.device,
        threads=flags.threads,
        preview=flags.preview,
    )


def label_names(prior: Prior) -> tuple[str, ...]:
    """The names of the prior's classes, if it has any."""
    names: tuple[str, ...] = ()
    for part in prior.conditions.parts:
        names = getattr(part, "label_names", names)
    return names


# --- painting


def paint(request: PaintRequest, tasks: list[PaintTask], flags: GenerateFlags, proven: bool) -> int:
    """Do the tasks, behind a bar that counts codes; how many samples were painted or given up."""
    codes = request.rows * request.columns
    wanted = sum(task.end - task.first for task in tasks)
    kept = kept_samples(request, tasks)
    with progress_bar("code") as bar, threads_restored():
        row = bar.add_task("painting", total=codes * wanted, completed=codes * kept, note="", bad=0)
        done, shown = Done(kept, 0, codes * kept), 0

        def show(inside: list[Done]) -> None:
            nonlocal shown
            # Never back: what dead workers were inside of is done again, the bar waits for it.
            shown = max(shown, done.codes + sum(work.codes for work in inside))
            samples = done.samples + sum(work.samples for work in inside)
            note = f"{samples:,} of {wanted:,} samples"
            bar.update(row, completed=shown, bad=done.failed, note=note)

        def on_result(task: PaintTask, result: Done) -> None:
            nonlocal done
            require_whole(request, task)
            done = Done(*(sum(pair) for pair in zip(done, result, strict=True)))
            show([])

        run_tasks(
            tasks,
            partial(PaintWorker, request),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=flags.cpus_per_worker or flags.threads,
            gpus_per_worker=gpus_per_worker(flags),
            address=flags.address,
            split=partial(split_work, batch_size=request.batch_size),
            give_up=partial(condemn, request),
            proven=proven,
            on_progress=show,
            reads={"--prior": request.prior},
            writes={"--out": request.out},
        )
    return wanted - kept


def require_whole(request: PaintRequest, task: PaintTask) -> None:
    """Raise ConfigError where a task that is done has left nothing that can be seen here."""
    # A worker on another machine may have written into a folder of the same name there.
    if not part_path(request.out, task.number).exists():
        raise ConfigError(
            f"A worker painted sample {task.first}, but it is not in {request.out}. Name an --out "
            "that every machine of the cluster shares."
        )


@contextmanager
def threads_restored() -> Iterator[None]:
    """A worker in this process sets its own number of threads."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gpus_per_worker(flags: GenerateFlags) -> float:
    if flags.gpus_per_worker != "auto":
        return flags.gpus_per_worker
    on_gpu = flags.device.startswith("cuda") or (
        flags.device == "auto" and torch.cuda.is_available()
    )
    return float(on_gpu)


# --- after


def finish(request: PaintRequest) -> None:
    """What remains when all tasks are done, each time: an earlier run may not have come to it."""
    empty_staging(request.out)
    if "codes" in request.save:
        finish_store(request.out)
    if "images" in request.save and not grid_path(request.out).exists():
        write_grid(request)


def grid_path(out: Path) -> Path:
    return out / "grid.png"


def write_grid(request: PaintRequest) -> None:
    """Write grid.png of the first samples; nothing where there are below two."""
    width, height = request.width, request.height
    first = range(min(request.count, GRID_PICTURES))
    paths = [picture_path(request.out, sample) for sample in first]
    found = [path for path in paths if path.is_file()]
    if len(found) < 2 or width * height > MAX_PIXELS:
        return
    scale = min(1.0, GRID_SIDE / max(width, height))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = (decode_image(path.read_bytes()) for path in found)
    small = np.stack([resize_and_crop(picture, size) for picture in pictures])
    write_png(grid_path(request.out), image_grid(small, columns=math.ceil(math.sqrt(len(found)))))


def report(flags: GenerateFlags, request: PaintRequest, wanted: range, new: int) -> int:
    """Print which samples were given up, and one line; the exit code."""
    lines = failed_lines(request.out, read_parts(request.out).values())
    failed = [line for line in lines if line["sample"] in wanted]
    for line in failed[:LISTED]:
        print(f"failed: {sample_name(line['sample'])}: {line['status']}: {line['error']}")
    if len(failed) > LISTED:
        print(f"failed: {len(failed) - LISTED} more: see the index")
    done = f"{new} painted" if new else "nothing left to do"
    there = f"{len(wanted) - new} were there"
    counts = ", ".join([done, there, *([f"{len(failed)} given up"] if failed else [])])
    print(f"{flags.out}: {counts}; {flags.size} pixels each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
