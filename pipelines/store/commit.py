"""How the rows of one task get into a store: whole, once, and never over somebody else's.

A worker stages its shard under a name made from the content's hash, writes its index part aside,
flushes both, and links the part to its final name. The link is exclusive: the first attempt wins
and later ones change nothing, however late they wake. Then the shard moves to the place where
plain zarr looks for it. The part names the shard's hash, so a reader finds it in either place.
Nothing in these files depends on the attempt: a task gives the same bytes whoever wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ops.files import fsync_path
from pipelines.store.layout import (
    FORMAT,
    StoreError,
    fill_value,
    index_path,
    inner_rows,
    shard_path,
    staging_path,
)

METADATA_KEY = b"smalti"
MISSING_CHUNK = 2**64 - 1  # Zarr's mark for an inner chunk that a shard does not hold

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("grid", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.string(), nullable=False),  # "ok", or a short reason
        pa.field("error", pa.string()),
        pa.field("checksum", pa.uint32(), nullable=False),  # crc32c of the row's bytes
        pa.field("replaces", pa.string()),  # "grid/row" of the row this one is newer than
    ]
)


def row_checksums(codes: np.ndarray[Any, Any]) -> list[int]:
    """crc32c of each row's bytes, for codes (n, h, w) as stored."""
    return [google_crc32c.value(row.tobytes()) for row in codes]


def shard_rows(num_rows: int, rows_per_task: int) -> int:
    """Rows a shard's file holds for a task of `num_rows`: whole inner chunks."""
    step = inner_rows(rows_per_task)
    return -(-num_rows // step) * step


def shard_size(num_rows: int, rows_per_task: int, row_bytes: int) -> int:
    """Bytes of a shard's file: its rows, 16 bytes for each inner chunk's place, a checksum."""
    chunks = rows_per_task // inner_rows(rows_per_task)
    return shard_rows(num_rows, rows_per_task) * row_bytes + 16 * chunks + 4


def shard_bytes(codes: np.ndarray[Any, Any], rows_per_task: int) -> bytes:
    """The file of one shard: rows (n, h, w), filled up to whole inner chunks, then Zarr's index.

    Chunks past the last row are marked missing, so a short task makes a short file.
    """
    total = shard_rows(len(codes), rows_per_task)
    rows = np.full((total, *codes.shape[1:]), fill_value(codes.dtype), codes.dtype)
    rows[: len(codes)] = codes
    step = inner_rows(rows_per_task)
    places = np.full((rows_per_task // step, 2), MISSING_CHUNK, "<u8")  # (offset, bytes)
    held = total // step
    places[:held, 1] = rows[:step].nbytes
    places[:held, 0] = np.arange(held) * rows[:step].nbytes
    index = places.tobytes()
    checksum: int = google_crc32c.value(index)
    return rows.tobytes() + index + checksum.to_bytes(4, "little")


def commit_task(
    root: Path,
    grid: str,
    task: int,
    rows_per_task: int,
    shards: Mapping[str, np.ndarray[Any, Any]],
    index: pa.Table,
) -> bool:
    """Commit one task: `shards` holds codes (n, h, w) of each track, `index` a line for each row.

    Returns False when another attempt had committed different content, which then stands.
    """
    staging = staging_path(root)
    staging.mkdir(parents=True, exist_ok=True)
    named: dict[str, dict[str, Any]] = {}
    for track, codes in shards.items():
        data = shard_bytes(codes, rows_per_task)
        digest = hashlib.sha256(data).hexdigest()
        name = f"{grid}-{task}-{track}-{digest[:32]}.shard"
        os.replace(_write_aside(staging / name, data), staging / name)
        named[track] = {"file": name, "sha256": digest, "bytes": len(data)}
    part = _part_bytes(index, {"format": FORMAT, "shards": named})
    fsync_path(staging)
    won = _link_once(_write_aside(staging / f"{grid}-{task}.parquet", part), part, root, grid, task)
    if won:
        publish_task(root, grid, task)
    else:
        standing = {shard["file"] for shard in read_part(root, grid, task)[1].values()}
        for file in {shard["file"] for shard in named.values()} - standing:
            (staging / file).unlink(missing_ok=True)
    return won


def _write_aside(path: Path, data: bytes) -> Path:
    """Write and flush `data` under a name no other attempt uses."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with open(aside, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return aside


def _part_bytes(index: pa.Table, metadata: dict[str, Any]) -> bytes:
    table = index.cast(INDEX_SCHEMA).replace_schema_metadata(
        {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _link_once(aside: Path, part: bytes, root: Path, grid: str, task: int) -> bool:
    """Give the part its final name unless one is there; True when the part there says the same."""
    final = index_path(root, grid, task)
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(aside, final)
    finally:
        aside.unlink(missing_ok=True)
    # Read back in either case: some network file systems make the link and then report failure.
    won = final.read_bytes() == part
    fsync_path(final.parent)
    fsync_path(root / "_index")
    return won


def read_part(root: Path, grid: str, task: int) -> tuple[pa.Table, dict[str, Any]]:
    """One task's index lines and what its metadata says of the shards; StoreError if damaged."""
    path = index_path(root, grid, task)
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        metadata = json.loads(table.schema.metadata[METADATA_KEY])
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged index part ({error}). Run verify.") from error
    return table.replace_schema_metadata(None), metadata["shards"]


def committed_tasks(root: Path) -> set[tuple[str, int]]:
    """(grid, task) of every task whose index part is in the store."""
    return {(path.parent.name, int(path.stem)) for path in (root / "_index").glob("*x*/*.parquet")}


def publish_task(root: Path, grid: str, task: int) -> None:
    """Move a committed task's shards to where plain zarr looks for them; safe to do again.

    Raises StoreError when a shard is in neither place.
    """
    _, shards = read_part(root, grid, task)
    for track, shard in shards.items():
        final = shard_path(root, grid, track, task)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(staging_path(root) / shard["file"], final)
        except FileNotFoundError:
            if not final.exists():
                raise StoreError(
                    f"{final}: shard is missing. Remove {index_path(root, grid, task)} "
                    "and run encode again to make it anew."
                ) from None
            continue
        for folder in (final.parent, final.parent.parent, final.parent.parent.parent):
            fsync_path(folder)
