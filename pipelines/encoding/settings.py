"""What encode is asked for, and what a code store is begun with and held to ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ops.config import ConfigError, to_json
from ops.cpu import nnpack_works
from ops.images import Transform
from ops.runtime import resolve_device
from pipelines.planning import PlanSettings
from pipelines.store import StoreError, code_dtype
from tokenizer import VQGAN

# On a CPU one image of 256x256 is as fast as four together, measured, and takes less memory; on a
# GPU many fill it.
PIXELS_PER_BATCH = {"cpu": 256 * 256, "cuda": 64 * 256 * 256}
MAX_BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class EncodeFlags:
    """Encode images into a code store that zarr.open and pyarrow.parquet read.

    Run it again to resume, or with more images in the folder to add them. What cannot be read is
    listed with the reason and stands in the store's index. EXIF orientation is applied, alpha is
    composited on white, and of an animation the first frame counts.
    """

    in_: Annotated[Path, tyro.conf.arg(name="in")]
    """Folder of images, tar files (WebDataset) or Parquet tables, searched to the bottom; or one
    such file."""
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
    flip: Literal["none", "both"] = "none"
    """both: each view a second time, mirrored; --crop ten has its mirrors already."""
    seed: int = 0
    """For --crop random: the place depends on this and the image's name alone."""
    labels: Literal["none", "first", "last"] = "none"
    """first: the first folder below --in is an image's class. last: the folder it lies in."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE, once for each further track: aligned rows beside the images'. segmentation=DIR,
    depth=DIR or any other name: files of the images' names. low_res=RATIO: the images shrunk and
    enlarged again. boxes=FILE: JSONL, a line a box, {"file", "category", "bbox": [x, y, width,
    height]} in pixels. keypoints=FILE: JSONL, a line a figure, {"file", "keypoints": [[x, y,
    visible], ...]}. class=FILE: JSONL or CSV of {"file", "class"}. A store keeps up the tracks that
    it has."""
    track_tokenizer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=DIR: the model or run folder that makes codes of a track; needed once."""
    batch_size: int | Literal["auto"] = "auto"
    """Images a forward pass; frozen with the store."""
    rows_per_task: int | Literal["auto"] = "auto"
    """Rows a shard file holds; frozen with the store."""
    compress: bool = False
    """For archives: shards take about the bits a code needs, but are read less quickly."""
    by_content: bool = False
    """Tell changed images by their bytes, all read for it, instead of by size and time."""
    retry_failed: bool = False
    """Try the images in the ledger once more, though they have not changed."""
    prune: bool = False
    """Hide the rows of images that --in no longer holds; without this they stay."""
    threads: int | Literal["auto"] = "auto"
    """CPU threads a forward pass; frozen with the store. With auto, 1: whole passes run side by
    side instead."""
    convolution: Literal["auto", "direct", "nnpack"] = "auto"
    """nnpack: half the time on most CPUs, other last bits; frozen with the store. With auto taken
    where this machine has it and a forward pass has one thread."""
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


def plan_settings(
    asked: EncodeFlags,
    tokenizer: VQGAN,
    transform: Transform,
    num_rows: int,
    older: PlanSettings | None,
) -> PlanSettings:
    """What is asked for; `auto` means as in the store, or a good choice for a new one."""

    def chosen(value: Any, name: str, choose: Callable[[], Any]) -> Any:
        if value != "auto":
            return value
        return older.track[name] if older else choose()

    device = chosen(asked.device, "device", lambda: resolve_device("auto").type)
    kind = resolve_device(device).type
    threads = chosen(asked.threads, "threads", lambda: 1)
    convolution = chosen(asked.convolution, "convolution", lambda: _good_convolution(kind, threads))
    if convolution == "nnpack":
        _check_nnpack(asked, kind)
    track = {
        "tokenizer": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
        "dtype": code_dtype(tokenizer.config.codebook_size).name,
        "transform": to_json(transform),
        "batch_size": chosen(
            asked.batch_size, "batch_size", lambda: _good_batch_size(kind, transform)
        ),
        "threads": threads,
        "convolution": convolution,
        "device": device,
    }
    rows_per_task = asked.rows_per_task
    if rows_per_task == "auto":
        rows_per_task = older.rows_per_task if older else _good_rows_per_task(num_rows)
    return PlanSettings(
        rows_per_task=rows_per_task, track=track, labels=asked.labels, compress=asked.compress
    )


def _good_convolution(device_type: str, threads: int) -> str:
    # NNPACK keeps to one thread; several share direct convolutions in less time.
    if device_type == "cpu" and threads == 1 and nnpack_works():
        return "nnpack"
    return "direct"


def _check_nnpack(asked: EncodeFlags, device_type: str) -> None:
    """Raises ConfigError where the convolutions that a store wants cannot be computed."""
    if device_type != "cpu":
        raise ConfigError("--convolution nnpack is for CPUs. Use --device cpu, or direct.")
    if not asked.workers and not nnpack_works():  # actors look for themselves, where they are
        raise ConfigError(
            "The store is asked for or was begun with --convolution nnpack, and torch has no "
            "NNPACK for this machine. Go on with it on one that has it (torch for Linux on x86-64 "
            "does), or name another --out and --convolution direct."
        )


def _good_batch_size(device_type: str, transform: Transform) -> int:
    pixels = PIXELS_PER_BATCH.get(device_type, PIXELS_PER_BATCH["cuda"])
    return min(max(1, pixels // transform.image_size**2), MAX_BATCH_SIZE)


def _good_rows_per_task(num_rows: int) -> int:
    """About 64 tasks of 256 to 4,096 rows: short enough to redo, long enough to read fast."""
    return min(max(256, -(-num_rows // 64**2) * 64), 4096)


def check_same(root: Path, store: PlanSettings, asked: PlanSettings) -> None:
    """Raises StoreError that says what differs between the store and what is asked for."""
    differing = []
    if store.track["fingerprint"] != asked.track["fingerprint"]:
        names = [f"{s.track['tokenizer']} ({s.track['fingerprint']})" for s in (store, asked)]
        differing.append(f"--tokenizer (the store has {names[0]}, asked for {names[1]})")
    for name, ours, theirs in (
        *(
            (n, getattr(store, n), getattr(asked, n))
            for n in ("rows_per_task", "labels", "compress")
        ),
        *(
            (n, store.track[n], asked.track[n])
            for n in ("batch_size", "threads", "convolution", "device")
        ),
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
