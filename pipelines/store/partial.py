"""Pieces of an unfinished task that outlast whoever made them.

A task long enough to be interrupted leaves the rows it has done in the staging folder. Each piece
is one file that carries its own hash: a torn or damaged one is as good as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ops import disk
from ops.files import fsync_path, write_aside
from pipelines.store.layout import METADATA_KEY, StoreError, staging_path

HASH_BYTES = 32  # sha256, before everything else in the file


class PartialShard(NamedTuple):
    """Rows `first` to `first + len(index) - 1` of a task."""

    first: int
    codes: dict[str, np.ndarray[Any, Any]]  # track -> (n, h, w)
    index: pa.Table


def write_partial_shard(
    root: Path,
    grid: str,
    task: int,
    first: int,
    codes: Mapping[str, np.ndarray[Any, Any]],
    index: pa.Table,
) -> None:
    """Keep codes (n, h, w) of each track and their n index lines, whole or not at all."""
    staging = staging_path(root)
    forms = {track: (rows.dtype.str, rows.shape[1:]) for track, rows in codes.items()}
    table = index.replace_schema_metadata(
        {METADATA_KEY: json.dumps({"first": first, "forms": forms})}
    )
    for track, rows in codes.items():
        table = table.append_column(_column(track), _as_binary(rows))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload = sink.getvalue().to_pybytes()
    # The end is part of the name, so that a shorter piece never takes a longer one's place.
    name = f"{grid}-{task}-{first}-{first + len(index)}.partial-shard"
    try:
        aside = write_aside(staging / name, hashlib.sha256(payload).digest() + payload)
        disk.disk.replace(aside, staging / name)
        fsync_path(staging)
    except FileNotFoundError as error:
        raise StoreError(f"{staging} was emptied by another run ({error}).") from error


def read_partial_shards(root: Path, grid: str, task: int) -> list[PartialShard]:
    """The whole pieces of one task, by their first row; pieces may overlap."""
    pieces = [_read(path) for path in _files(root, grid, task)]
    return sorted((p for p in pieces if p is not None), key=lambda p: (p.first, len(p.index)))


def remove_partial_shards(root: Path, grid: str, task: int) -> None:
    """Remove the pieces of one task: it is committed."""
    for path in _files(root, grid, task):
        disk.disk.unlink(path)


def _files(root: Path, grid: str, task: int) -> list[Path]:
    return sorted(staging_path(root).glob(f"{grid}-{task}-*.partial-shard"))


def _read(path: Path) -> PartialShard | None:
    try:
        data = path.read_bytes()
    except OSError:  # its task was committed meanwhile, or the disk cannot read it
        return None
    digest, payload = data[:HASH_BYTES], data[HASH_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    with pa.ipc.open_stream(payload) as reader:
        table = reader.read_all()
    description = json.loads(table.schema.metadata[METADATA_KEY])
    if "forms" not in description:  # by an older version: its rows are made anew
        return None
    codes = {
        track: _from_binary(table[_column(track)], np.dtype(dtype), shape)
        for track, (dtype, shape) in description["forms"].items()
    }
    index = table.drop_columns([_column(track) for track in codes]).replace_schema_metadata(None)
    return PartialShard(description["first"], codes, index)


def _column(track: str) -> str:
    return f"codes of {track}"


def _as_binary(rows: np.ndarray[Any, Any]) -> pa.Array:
    """One value of fixed size for each row of (n, h, w)."""
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    buffer = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), len(rows), [None, buffer])


def _from_binary(
    column: pa.ChunkedArray, dtype: np.dtype[Any], shape: list[int]
) -> np.ndarray[Any, np.dtype[Any]]:
    rows = b"".join(column.to_pylist())
    return np.frombuffer(rows, dtype).reshape(-1, *shape)
