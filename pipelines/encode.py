"""`python -m pipelines.encode`: a folder of images to a code store, resumed or extended when
run again."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ops.config import ConfigError, to_json
from ops.files import atomic_path, exclusive_lock
from ops.images import ImageError, Transform, image_size
from ops.runtime import resolve_device
from pipelines.command_line import run_command
from pipelines.encode_task import EncodeWorker
from pipelines.jobs import run_tasks
from pipelines.plan import Plan, PlanSettings, Task, extend_plan, read_plan
from pipelines.progress import progress_bar
from pipelines.readers import Entry, Listing, list_input
from pipelines.store import (
    CodeStore,
    StoreAttributes,
    StoreError,
    code_dtype,
    grid_name,
    publish_task,
    write_metadata,
)
from pipelines.store.commit import committed_tasks
from pipelines.store.layout import staging_path, tokenizer_path
from tokenizer import VQGAN, load_tokenizer

LISTED = 20  # failed and skipped files named at the end; the index names all that failed
# Larger batches gain nothing on a CPU, measured; on a GPU they fill it.
PIXELS_PER_BATCH = {"cpu": 4 * 256 * 256, "cuda": 64 * 256 * 256}
MAX_BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class EncodeFlags:
    """Encode images into a code store that zarr.open and pyarrow.parquet read.

    Run it again to resume, or with more images in the folder to add them. What cannot be read is
    listed with the reason and stands in the store's index. EXIF orientation is applied, alpha is
    composited on white, and of an animation the first frame counts.
    """

    in_: Annotated[Path, tyro.conf.arg(name="in")]
    """Folder of images, searched to the bottom, or one image. First-level folders are labels."""
    out: Path
    """The code store to make or to go on with, for instance codes.zarr."""
    tokenizer: str = "photo-f8"
    """Name of a bundled tokenizer, or a model or run folder."""
    image_size: int = 256
    """Side of the encoded picture in pixels; with --crop native its short side."""
    crop: Literal["center", "random", "ten", "native"] = "center"
    """center: the middle square. random: one square placed by --seed and the image's name. ten:
    four corners, the middle, and their mirrors. native: the whole picture, aspect kept (at most
    4:1), one array for each grid shape."""
    seed: int = 0
    """For --crop random."""
    batch_size: int | Literal["auto"] = "auto"
    """Images a forward pass; frozen with the store."""
    rows_per_task: int | Literal["auto"] = "auto"
    """Rows a shard file holds; frozen with the store."""
    threads: int | Literal["auto"] = "auto"
    """CPU threads a forward pass; frozen with the store. With auto, 1: whole passes run side by
    side instead."""
    workers: int = 0
    """Ray actors that encode; 0 encodes in this process. Both give the same bytes."""
    cpus_per_worker: int = 1
    """CPU cores each actor may use."""
    gpus_per_worker: float | Literal["auto"] = "auto"
    """Share of a GPU each actor gets; with auto 1 on a GPU, else 0."""
    address: str | None = None
    """Address of a running Ray cluster, which must see --in and --out under the same paths;
    without it --workers starts a local Ray."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; frozen with the store."""
    max_bad: float = 0.5
    """Exit code 1 when a larger share of the images than this failed."""


def main(argv: list[str] | None = None) -> int:
    return run_command(EncodeFlags, encode, argv, "pipelines.encode")


def encode(flags: EncodeFlags) -> int:
    """Plan what is new, encode what is not in the store, print what came of it; the exit code."""
    root = flags.out.absolute()
    _check_output(root)
    _check_flags(flags)
    tokenizer = load_tokenizer(flags.tokenizer)
    transform = Transform(
        image_size=flags.image_size,
        crop=flags.crop,
        seed=flags.seed,
        multiple_of=tokenizer.config.downsample_factor,
    )
    listing = list_input(flags.in_)
    with exclusive_lock(staging_path(root) / "driver.lock"):
        _remove_partials(root)
        plan = _plan(root, flags, tokenizer, transform, listing)
        _publish_committed(root)
        committed = committed_tasks(root)
        waiting = [task for task in plan.tasks if (task.grid, task.number) not in committed]
        started = time.perf_counter()
        _run(root, flags, plan, waiting)
        seconds = time.perf_counter() - started
        _empty_staging(root)
    return _report(flags, CodeStore.open(root), plan, waiting, listing, seconds)


# --- planning


def _check_output(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file. Name a folder for --out.")
    ours = (root / "_plan", root / "_staging")
    if root.is_dir() and any(root.iterdir()) and not any(path.is_dir() for path in ours):
        raise StoreError(f"{root} holds other things. Name an empty or a new folder for --out.")


def _check_flags(flags: EncodeFlags) -> None:
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers: how many actors shall encode there?")
    for name in ("batch_size", "rows_per_task", "threads", "cpus_per_worker"):
        value = getattr(flags, name)
        if value != "auto" and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {value}.")


def _plan(
    root: Path, flags: EncodeFlags, tokenizer: VQGAN, transform: Transform, listing: Listing
) -> Plan:
    """The store's plan with the listing's new images in it; the store made if there is none."""
    older = read_plan(root)
    num_rows = len(listing.entries) * transform.views
    settings = _settings(flags, tokenizer, transform, num_rows, older.settings if older else None)
    if older is not None:
        _check_same(root, older.settings, settings)
    assert tokenizer.folder is not None  # it was loaded from one
    _copy_tokenizer(tokenizer.folder, tokenizer_path(root, "image"))
    grid_of = partial(_grid_of, transform)
    plan = extend_plan(root, listing.entries, settings, transform.views, grid_of)
    attributes = StoreAttributes(
        rows_per_task=plan.settings.rows_per_task,
        grids=plan.grids,
        label_names=plan.label_names,
        tracks={"image": plan.settings.track},
    )
    write_metadata(root, attributes)
    return plan


def _settings(
    flags: EncodeFlags,
    tokenizer: VQGAN,
    transform: Transform,
    num_rows: int,
    older: PlanSettings | None,
) -> PlanSettings:
    """What the flags ask for; `auto` means as in the store, or a good choice for a new one."""

    def chosen(asked: Any, name: str, choose: Callable[[], Any]) -> Any:
        if asked != "auto":
            return asked
        return older.track[name] if older else choose()

    device = chosen(flags.device, "device", lambda: resolve_device("auto").type)
    kind = resolve_device(device).type
    track = {
        "tokenizer": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
        "dtype": code_dtype(tokenizer.config.codebook_size).name,
        "transform": to_json(transform),
        "batch_size": chosen(
            flags.batch_size, "batch_size", lambda: _good_batch_size(kind, transform)
        ),
        "threads": chosen(flags.threads, "threads", lambda: 1),
        "device": device,
    }
    rows_per_task = flags.rows_per_task
    if rows_per_task == "auto":
        rows_per_task = older.rows_per_task if older else _good_rows_per_task(num_rows)
    return PlanSettings(rows_per_task=rows_per_task, track=track)


def _good_batch_size(device_type: str, transform: Transform) -> int:
    pixels = PIXELS_PER_BATCH.get(device_type, PIXELS_PER_BATCH["cuda"])
    return min(max(1, pixels // transform.image_size**2), MAX_BATCH_SIZE)


def _good_rows_per_task(num_rows: int) -> int:
    """About 64 tasks of 256 to 4,096 rows: short enough to redo, long enough to read fast."""
    return min(max(256, -(-num_rows // 64**2) * 64), 4096)


def _check_same(root: Path, store: PlanSettings, asked: PlanSettings) -> None:
    """Raises StoreError that says what differs between the store and what is asked for."""
    differing = []
    if store.track["fingerprint"] != asked.track["fingerprint"]:
        names = [f"{s.track['tokenizer']} ({s.track['fingerprint']})" for s in (store, asked)]
        differing.append(f"--tokenizer (the store has {names[0]}, asked for {names[1]})")
    for name, ours, theirs in (
        ("rows_per_task", store.rows_per_task, asked.rows_per_task),
        *((n, store.track[n], asked.track[n]) for n in ("batch_size", "threads", "device")),
        *(
            (name, store.track["transform"].get(name), value)
            for name, value in asked.track["transform"].items()
            if name != "multiple_of"
        ),
    ):
        if ours != theirs:
            flag = "--" + name.replace("_", "-")
            differing.append(f"{flag} (the store has {ours}, asked for {theirs})")
    if differing:
        raise StoreError(
            f"{root} was begun with other settings: {'; '.join(differing)}. "
            "Ask for the same, or name another --out."
        )


def _grid_of(transform: Transform, entry: Entry) -> str:
    """The grid shape an image will have; for native ones from its header."""
    factor = transform.multiple_of
    if transform.crop != "native":
        return grid_name(transform.image_size // factor, transform.image_size // factor)
    try:
        with open(entry.uri, "rb") as file:
            height, width = transform.target_size(*image_size(file))
    except (OSError, ImageError):
        return grid_name(1, 1)  # its row will be a ledger line without codes: keep it small
    return grid_name(height // factor, width // factor)


def _copy_tokenizer(folder: Path, copy: Path) -> None:
    """Keep what decodes the store beside its codes: config.json and the weights that are used."""
    if copy.exists():
        return
    averaged = folder / "ema.safetensors"
    with atomic_path(copy) as partial_copy:
        partial_copy.mkdir()
        shutil.copyfile(folder / "config.json", partial_copy / "config.json")
        weights = averaged if averaged.is_file() else folder / "model.safetensors"
        shutil.copyfile(weights, partial_copy / "model.safetensors")


# --- running


def _run(root: Path, flags: EncodeFlags, plan: Plan, tasks: list[Task]) -> None:
    if not tasks:
        return
    track = plan.settings.track
    on_gpu = torch.device(track["device"]).type != "cpu"
    gpus = float(on_gpu) if flags.gpus_per_worker == "auto" else flags.gpus_per_worker
    lanes = 1 if on_gpu else _lanes(flags, track["threads"])
    with progress_bar("image") as progress, _threads_restored():
        num_rows = sum(task.num_rows for task in tasks)
        bar = progress.add_task("encoding", total=num_rows, note="")

        def advance(count: int) -> None:
            progress.advance(bar, count)

        if flags.workers:
            make_worker = partial(EncodeWorker, root, lanes)
        else:
            make_worker = partial(EncodeWorker, root, lanes, advance)

        def on_result(task: Task, failed: int) -> None:
            if flags.workers:
                advance(task.num_rows)

        run_tasks(
            tasks,
            make_worker,
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=flags.cpus_per_worker,
            gpus_per_worker=gpus,
            address=flags.address,
        )


def _lanes(flags: EncodeFlags, threads: int) -> int:
    """Forward passes that run side by side in one process on CPUs."""
    cpus = flags.cpus_per_worker if flags.workers else torch.get_num_threads()
    return max(1, cpus // threads)


@contextmanager
def _threads_restored() -> Iterator[None]:
    # Encoding threads set their own number, which torch also gives to threads that start later.
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- before and after


def _remove_partials(root: Path) -> None:
    """Remove what a killed driver left half written; the lock says that none is at work."""
    for pattern in ("*", "_plan/*", "_tokenizer/*", "g*/*", "g*/*/*"):
        for path in root.glob(f"{pattern}.partial"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _publish_committed(root: Path) -> None:
    """Publish shards of tasks that were committed just before a kill."""
    committed = committed_tasks(root)
    for path in staging_path(root).glob("*.shard"):
        grid, number = path.name.split("-")[:2]
        if (grid, int(number)) in committed:
            publish_task(root, grid, int(number))


def _empty_staging(root: Path) -> None:
    """Remove what dead attempts left; only once all tasks are committed and published."""
    for path in staging_path(root).iterdir():
        if path.name != "driver.lock":
            path.unlink(missing_ok=True)


def _report(
    flags: EncodeFlags,
    store: CodeStore,
    plan: Plan,
    ran: list[Task],
    listing: Listing,
    seconds: float,
) -> int:
    failed = store.failed.to_pylist()
    _print_list("failed", [(line["key"], f"{line['status']}: {line['error']}") for line in failed])
    _print_list("skipped", listing.skipped)
    counts = f"{len(store)} encoded, {len(failed)} failed, {len(listing.skipped)} skipped"
    if ran:
        rate = sum(task.num_rows for task in ran) / seconds
        print(f"{flags.out}: {counts}, {rate:.1f} images/s")
    else:
        print(f"{flags.out}: nothing to do; {counts}")
    bad = len(failed) / max(1, len(failed) + len(store))
    if bad > flags.max_bad:
        print(f"error: {bad:.0%} failed, more than --max-bad {flags.max_bad}", file=sys.stderr)
        return 1
    return 0


def _print_list(title: str, lines: list[tuple[str, str]]) -> None:
    for key, reason in lines[:LISTED]:
        print(f"{title}: {key!r}: {reason}")
    if len(lines) > LISTED:
        where = ": see the index" if title == "failed" else ""
        print(f"{title}: {len(lines) - LISTED} more{where}")


if __name__ == "__main__":
    sys.exit(main())
