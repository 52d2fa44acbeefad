"""Commit of one task's rows to a store: all of them, once, never overwriting another attempt's.

A worker stages its shard under a name made from the content's hash, writes its index part under a
temporary name, flushes both, and links the part to its final name. The link is exclusive: the
first attempt wins and later ones change nothing, however late they come. Then the shard is moved
to the path where plain zarr reads it. The part names the shard's hash, so a reader finds it under
either path. Nothing in these files depends on the attempt: every attempt gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ops import disk
from ops.files import fsync_path, link_once, make_folders, write_temporary
from pipelines.store.layout import (
    StoreError,
    index_path,
    shard_path,
    staging_path,
    store_root,
)
from pipelines.store.parquet import description_metadata, parquet_bytes, read_description
from pipelines.store.shards import shard_bytes

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
        pa.field("error", pa.string()),  # why it failed; of an ok row what was not used, or null
        pa.field("checksum", pa.uint32(), nullable=False),  # crc32c of the row's raw bytes
        pa.field("content", pa.string()),  # hash of the image file's bytes, where they were read
        pa.field("replaces", pa.string()),  # "grid/row" of the row this one is newer than
    ]
)


def commit_task(
    root: Path,
    grid: str,
    task: int,
    rows_per_task: int,
    shards: Mapping[str, np.ndarray[Any, Any]],
    index: pa.Table,
    compress: bool = False,
) -> bool:
    """Commit one task: `shards` holds codes (n, h, w) of each track, `index` a line for each row.

    Returns False when another attempt had committed different content, which is kept. Raises
    StoreError where another run has emptied the staging folder meanwhile: it finished the store.
    """
    staging, final = staging_path(root), index_path(root, grid, task)
    named: dict[str, dict[str, Any]] = {}
    try:
        for track, codes in shards.items():
            data = shard_bytes(codes, rows_per_task, compress)
            digest = hashlib.sha256(data).hexdigest()
            name = f"{grid}-{task}-{track}-{digest[:32]}.shard"
            disk.disk.replace(write_temporary(staging / name, data), staging / name)
            named[track] = {"file": name, "sha256": digest, "bytes": len(data)}
        part = _part_bytes(index, named)
        temporary = write_temporary(staging / final.name, part)
        fsync_path(staging)  # or a power cut could keep the part and lose its shards
        make_folders(final.parent)
        won = link_once(temporary, final)
    except FileNotFoundError as error:
        raise StoreError(f"{staging} was emptied by another run ({error}).") from error
    _fsync_up(final.parent.parent, store_root(root))
    publish_task(root, grid, task)  # even if another attempt won: it may have died since
    if not won:
        committed = {shard["file"] for shard in read_part(root, grid, task)[1].values()}
        for file in {shard["file"] for shard in named.values()} - committed:
            disk.disk.unlink(staging / file)
    return won


def _part_bytes(index: pa.Table, shards: Mapping[str, Any]) -> bytes:
    table = index.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    return parquet_bytes(table.replace_schema_metadata(description_metadata({"shards": shards})))


def _fsync_up(folder: Path, root: Path) -> None:
    """Flush the directory entries of each folder from `folder` up to `root`, the store's own.

    Always all of them: another attempt may have made one and been killed before flushing it.
    """
    while True:
        fsync_path(folder)
        if folder == root:
            return
        folder = folder.parent


def read_part(root: Path, grid: str, task: int) -> tuple[pa.Table, dict[str, Any]]:
    """One task's index lines, INDEX_SCHEMA, and {track: {"file", "sha256", "bytes"}} of its shards.

    Raises StoreError where the part is missing or corrupt.
    """
    path = index_path(root, grid, task)
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        description = read_description(path, table.schema.metadata)
        lines = table.replace_schema_metadata(None).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: corrupt index part ({error}). Run verify.") from error
    return lines, description["shards"]


def committed_tasks(root: Path) -> set[tuple[str, int]]:
    """(grid, task) of every task that has an index part in the store."""
    return {(path.parent.name, int(path.stem)) for path in (root / "_index").glob("*x*/*.parquet")}


def publish_task(root: Path, grid: str, task: int) -> None:
    """Move a committed task's shards to the paths that plain zarr reads; may be called again.

    Raises StoreError where a shard has neither its staged nor its final path.
    """
    _, shards = read_part(root, grid, task)
    for track, shard in shards.items():
        final = shard_path(root, grid, track, task)
        make_folders(final.parent)
        try:
            disk.disk.replace(staging_path(root) / shard["file"], final)
        except FileNotFoundError:
            if not final.exists():
                raise StoreError(
                    f"{final}: shard is missing. Remove {index_path(root, grid, task)} "
                    "and run encode again to make a new one."
                ) from None
        _fsync_up(final.parent, store_root(root))
