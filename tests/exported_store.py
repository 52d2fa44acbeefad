"""A small code store with everything that an export must carry, or leave out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from ops.files import make_folders
from pipelines.store import (
    CodeStore,
    commit_task,
    plan_path,
    read_attributes,
    staging_path,
    track_path,
    write_metadata,
    write_tombstones,
)
from pipelines.store.shards import row_checksums
from tests.conftest import make_store
from tokenizer import load_tokenizer

GRID = "4x5"
ROWS, PER_TASK = 22, 8
FAILED, REPLACED, REMOVED = 3, 5, 9
CURRENT = [row for row in range(ROWS) if row not in (FAILED, REPLACED, REMOVED)]
WITHOUT_BOXES = 10
BOXES = {"row_shape": [2, 5], "dtype": "float32", "categories": ["lake"]}


def make_exported_store(path: Path, tokenizer: Path, *, compress: bool = False) -> Path:
    """22 rows in three shards, of which three are not current; labels, and a track of boxes."""
    model = load_tokenizer(tokenizer)
    size = model.config.codebook_size
    codes = np.random.default_rng(0).integers(0, size, (ROWS, 4, 5))
    labels: list[int | None] = [row % 3 if row % 4 else None for row in range(ROWS)]
    make_store(
        path,
        codes,
        codebook_size=size,
        labels=labels,
        failed=(FAILED,),
        rows_per_task=PER_TASK,
        compress=compress,
        columns={
            # Row 20 is another image of the name, and row 21 a view of the same image.
            "key": [f"a/{row}.x,\n.jpg" for row in range(20)] + ["a/5.x,\n.jpg", "a/19.x,\n.jpg"],
            "replaces": [None] * 20 + [f"{GRID}/{REPLACED}", None],
            "view": [0] * 21 + [1],
        },
        label_names=("lake", "wood", "söhne"),
        fingerprint=model.fingerprint,
        downsample_factor=model.config.downsample_factor,
    )
    _add_boxes(path, compress)
    gone = CodeStore.open(path).index.slice(REMOVED, 1)
    write_tombstones(path, gone)
    shutil.copytree(tokenizer, path / "_tokenizer" / "image")
    return path


def boxes() -> np.ndarray:
    """The track's rows (22, 2, 5)."""
    found = np.random.default_rng(1).random((ROWS, 2, 5), np.float32)
    found[WITHOUT_BOXES] = np.nan
    return found


def _add_boxes(path: Path, compress: bool) -> None:
    track_dir, found, index = track_path(path, "boxes"), boxes(), CodeStore.open(path).index
    make_folders(staging_path(track_dir))
    make_folders(plan_path(track_dir, 0).parent)
    plan_path(track_dir, 0).touch()
    status = ["missing" if row == WITHOUT_BOXES else "ok" for row in range(ROWS)]
    index = index.set_column(index.column_names.index("status"), "status", [status])
    checksums = index.schema.field("checksum").with_nullable(False)
    index = index.set_column(
        index.column_names.index("checksum"),
        checksums,
        [np.array(row_checksums(found), np.uint32)],
    )
    for task, first in enumerate(range(0, ROWS, PER_TASK)):
        rows = found[first : first + PER_TASK]
        part = index.slice(first, PER_TASK)
        commit_task(track_dir, GRID, task, PER_TASK, {"boxes": rows}, part, compress)
    attributes = read_attributes(path)
    write_metadata(path, replace(attributes, tracks={**attributes.tracks, "boxes": BOXES}))
