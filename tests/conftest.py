"""Fixtures shared by many tests: small images, stores and tokenizers, made when needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ops import object_store, paths, transient_errors
from ops.files import make_folders
from ops.paths import ObjectPath
from pipelines.store import (
    INDEX_SCHEMA,
    StoreAttributes,
    code_dtype,
    commit_task,
    fill_value,
    write_metadata,
)
from pipelines.store.layout import staging_path
from pipelines.store.shards import row_checksums
from tests.encode_run import EncodeRun
from tests.object_servers import S3, s3_server

#: The part of each property's examples that is tried; SMALTI_ALL_EXAMPLES=1 tries them all.
SHARE = 1.0 if os.environ.get("SMALTI_ALL_EXAMPLES") else 0.35


def examples(count: int) -> int:
    """How many of a property's `count` examples this run tries."""
    return max(5, round(SHARE * count))


# The same examples every time, and no deadline, since tests may run on a busy machine.
hypothesis.settings.register_profile(
    "smalti", deadline=None, derandomize=True, max_examples=examples(100)
)
hypothesis.settings.load_profile("smalti")

torch.set_num_threads(1)  # tensors are small: more threads would cost time

# Tests send signals, which a process started by nohup or in the background ignores.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray for each process of tests; starting it takes ten seconds."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=256 << 20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """One S3 server for each process of tests; each test makes buckets of its own."""
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3) -> Iterator[ObjectPath]:
    """A new bucket, reached without naming the server's options."""
    with paths.storage_options(s3.options):
        yield s3.bucket()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transient errors are tried again at once, and by us alone."""
    monkeypatch.setattr(transient_errors, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(object_store, "RETRIES", dict.fromkeys(object_store.RETRIES, 0))


def photograph(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A synthetic photograph, uint8 (height, width, 3): a vertical gradient, discs, noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    top, bottom = random.uniform(0, 255, (2, 3))
    image = top + (bottom - top) * y[..., None]
    for _ in range(3):
        cy, cx, radius = random.uniform(0, 0.8), random.uniform(0, 1), random.uniform(0.05, 0.3)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[disc] = 0.3 * image[disc] + 0.7 * random.uniform(0, 255, 3)
    image += random.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten small images in two class folders, `lake` and `wood`; do not change it."""
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(10):
        suffix = "jpg" if seed < 8 else "png"
        path = folder / ("lake" if seed % 2 else "wood") / f"{seed:02d}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photograph(seed)).save(path)
    return folder


def made_up_provenance(codebook_size: int = 16) -> dict[str, object]:
    """What every track of codes records of its tokenizer."""
    return {
        "tokenizer": "made-up",
        "fingerprint": "0" * 16,
        "codebook_size": codebook_size,
        "downsample_factor": 8,
    }


def make_store(
    path: Path,
    codes: np.ndarray,
    *,
    codebook_size: int = 16,
    labels: list[int | None] | None = None,
    failed: tuple[int, ...] = (),
    rows_per_task: int = 8,
    compress: bool = False,
    columns: Mapping[str, Sequence[object]] | None = None,
    label_names: tuple[str, ...] | None = None,
    **provenance: object,
) -> Path:
    """A code store of `codes` (n, h, w), made without an encoder; rows in `failed` have no codes.

    `columns` replace columns of the index: {"key": [...], "view": [...]} makes views.
    """
    dtype = code_dtype(codebook_size)
    codes = codes.astype(dtype)
    codes[list(failed)] = fill_value(dtype)
    grid = f"{codes.shape[1]}x{codes.shape[2]}"
    track = made_up_provenance(codebook_size) | provenance
    lines = [
        {
            "key": f"{row:04d}.jpg",
            "source": f"/images/{row:04d}.jpg",
            "grid": grid,
            "row": row,
            "view": 0,
            "label": labels[row] if labels else None,
            "width": 64,
            "height": 48,
            "status": "broken" if row in failed else "ok",
            "error": "it would not open" if row in failed else None,
            "checksum": checksum,
            "content": None if row in failed else f"{row:032x}",
            "replaces": None,
        }
        for row, checksum in enumerate(row_checksums(codes))
    ]
    for name, values in (columns or {}).items():
        for line, value in zip(lines, values, strict=True):
            line[name] = value
    index = pa.Table.from_pylist(lines, schema=INDEX_SCHEMA)
    make_folders(staging_path(path))
    for task, first in enumerate(range(0, len(codes), rows_per_task)):
        shards = {"image": codes[first : first + rows_per_task]}
        part = index.slice(first, rows_per_task)
        commit_task(path, grid, task, rows_per_task, shards, part, compress)
    num_labels = max((label for label in labels or [] if label is not None), default=-1) + 1
    write_metadata(
        path,
        StoreAttributes(
            rows_per_task=rows_per_task,
            grids={grid: len(codes)},
            label_names=label_names or tuple(f"class{label}" for label in range(num_labels)),
            compress=compress,
            tracks={"image": track},
        ),
    )
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a small untrained tokenizer: its images are noise, its codes valid."""
    from tokenizer import build_tokenizer, save_tokenizer

    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    save_tokenizer(folder, build_tokenizer("tiny", seed=0))
    return folder


@pytest.fixture
def run(tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> EncodeRun:
    """Calls the encode command with the tiny tokenizer; the store is codes.zarr in tmp_path."""
    return EncodeRun(tiny_tokenizer, tmp_path / "codes.zarr", capsys)
