"""Commit of one task's rows to a store: all of them, once, never overwriting another attempt's.

A worker stages its shard under a name made from the content's hash, writes its index part under a
temporary name, flushes both, and links the part to its final name; in an object store a conditional
PUT takes the place of the link. Both are exclusive: the first attempt wins and later ones change
nothing, however late they come. Then the shard is moved
to the path where plain zarr reads it. The part names the shard's hash, so a reader finds it under
either path. Nothing in these files depends on the attempt: every attempt gives the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops import paths
from ops.paths import AnyPath, join
from pipelines.store.environments import MadeIn, described_environments, parse_environments
from pipelines.store.layout import (
    StoreError,
    index_path,
    indexed_tasks,
    shard_path,
    staged_name,
    staging_path,
    store_root,
    track_name,
)
from pipelines.store.parquet import (
    CARRIED_FIELDS,
    checked_table,
    corrupt_as,
    description_metadata,
    open_parquet,
    parquet_bytes,
    read_description,
)
from pipelines.store.shards import shard_bytes
from pipelines.store.validation import MAX_ROWS_PER_TASK

SHA256 = re.compile("[0-9a-f]{64}")

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("source", pa.large_string(), nullable=False),
        pa.field("grid", pa.large_string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.large_string(), nullable=False),  # "ok", or a short reason
        pa.field(
            "error", pa.large_string()
        ),  # why it failed; of an ok row what was not used, or null
        pa.field("checksum", pa.uint32(), nullable=False),  # crc32c of the row's raw bytes
        pa.field(
            "content", pa.large_string()
        ),  # hash of the image file's bytes, where they were read
        pa.field("replaces", pa.large_string()),  # "grid/row" of the row this one is newer than
        *CARRIED_FIELDS,
    ]
)


def commit_task(
    root: AnyPath,
    grid: str,
    task: int,
    rows_per_task: int,
    shards: Mapping[str, np.ndarray[Any, Any]],
    index: pa.Table,
    compress: bool = False,
    environments: Sequence[MadeIn] = (),
) -> bool:
    """Commit one task: `shards` holds codes (n, h, w) of each track, `index` a line for each row.

    `environments` are those that its rows were made in, by place in the task.

    Returns False when another attempt had committed different content, which is kept. Raises
    StoreError where another run has emptied the staging folder meanwhile: it finished the store.
    """
    staging, final = staging_path(root), index_path(root, grid, task)
    named: dict[str, dict[str, Any]] = {}
    try:
        for track, codes in shards.items():
            data = shard_bytes(codes, rows_per_task, compress)
            digest = hashlib.sha256(data).hexdigest()
            name = staged_name(grid, task, track, digest)
            paths.write_staged(join(staging, name), data)
            named[track] = {"file": name, "sha256": digest, "bytes": len(data)}
        part = _part_bytes(index, named, environments)
        won = paths.commit_once(staging, final, part)
    except FileNotFoundError as error:
        raise StoreError(f"{staging} was emptied by another run ({error}).") from error
    paths.flush_up(final.parent.parent, store_root(root))
    publish_task(root, grid, task)  # even if another attempt won: it may have died since
    if not won:
        committed = {shard["file"] for shard in read_part(root, grid, task)[1].values()}
        for file in {shard["file"] for shard in named.values()} - committed:
            paths.remove(join(staging, file))
    return won


def _part_bytes(
    index: pa.Table, shards: Mapping[str, Any], environments: Sequence[MadeIn]
) -> bytes:
    table = index.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    description = {"shards": shards, **described_environments(environments)}
    return parquet_bytes(table.replace_schema_metadata(description_metadata(description)))


def describe_part(root: AnyPath, grid: str, task: int) -> tuple[int, dict[str, Any]]:
    """How many rows one task's index part has, and {track: {"file", "sha256", "bytes"}} of its
    shards; its lines are not read. Raises StoreError as read_part does."""
    path = index_path(root, grid, task)
    with _corrupt_part(path):
        _, num_rows, shards = _opened_part(root, grid, task)
    return num_rows, shards


def read_part(root: AnyPath, grid: str, task: int) -> tuple[pa.Table, dict[str, Any]]:
    """One task's index lines, INDEX_SCHEMA, and {track: {"file", "sha256", "bytes"}} of its shards.

    Raises StoreError where the part is missing or corrupt: then nothing that it names is used.
    """
    path = index_path(root, grid, task)
    with _corrupt_part(path):
        file, _, shards = _opened_part(root, grid, task)
        lines = checked_table(file.read(), INDEX_SCHEMA)
        _check_lines(grid, lines)
    return lines, shards


def _corrupt_part(path: AnyPath) -> AbstractContextManager[None]:
    return corrupt_as(
        lambda error: StoreError(f"{path}: corrupt index part ({error}). Run verify.")
    )


def _opened_part(root: AnyPath, grid: str, task: int) -> tuple[Any, int, dict[str, Any]]:
    """The file of an index part, its number of rows and its shards, checked."""
    path = index_path(root, grid, task)
    file = open_parquet(path)
    num_rows = file.metadata.num_rows
    if not 0 < num_rows <= MAX_ROWS_PER_TASK:
        raise ValueError(f"it has {num_rows:,} rows")
    description = read_description(path, file.schema_arrow.metadata)
    shards = _checked_shards(track_name(root), grid, task, description["shards"])
    parse_environments(description, num_rows)
    return file, num_rows, shards


def read_environments(root: AnyPath, grid: str, task: int) -> list[MadeIn]:
    """The environments in which one task's rows were made, by place in the task.

    None where an earlier version made them. Raises StoreError where the part is missing or corrupt.
    """
    path = index_path(root, grid, task)
    with _corrupt_part(path):
        file = open_parquet(path)
        description = read_description(path, file.schema_arrow.metadata)
        return parse_environments(description, file.metadata.num_rows)


def _checked_shards(track: str, grid: str, task: int, shards: Any) -> dict[str, Any]:
    """The shard of a description; ValueError where it is not as commit_task describes it."""
    if shards.keys() != {track} or shards[track].keys() != {"file", "sha256", "bytes"}:
        raise ValueError(f"it does not describe the shard of track {track} alone")
    shard = shards[track]
    if not SHA256.fullmatch(shard["sha256"]) or type(shard["bytes"]) is not int:
        raise ValueError("hash and size of its shard are none")
    if shard["file"] != staged_name(grid, task, track, shard["sha256"]):
        raise ValueError("it names another file than its shard")
    return dict(shards)


def _check_lines(grid: str, lines: pa.Table) -> None:
    """Raise ValueError where index lines are not those of consecutive rows of one grid."""
    rows = lines["row"].to_numpy()
    if not pc.all(pc.equal(lines["grid"], grid)).as_py():
        raise ValueError(f"it lists rows of other grids than {grid}")
    if rows[0] < 0 or (np.diff(rows) != 1).any():
        raise ValueError("its rows are not consecutive")
    for name, least in (("view", 0), ("label", 0), ("width", 1), ("height", 1)):
        found = pc.min(lines[name]).as_py()
        if found is not None and found < least:
            raise ValueError(f"column {name} has {found}")


def committed_tasks(root: AnyPath) -> set[tuple[str, int]]:
    """(grid, task) of every task that has an index part in the store.

    Raises StoreError for a Parquet file among them that the store has not written.
    """
    return set(indexed_tasks(root))


def publish_task(root: AnyPath, grid: str, task: int) -> None:
    """Move a committed task's shards to the paths that plain zarr reads; may be called again.

    Raises StoreError where a shard has neither its staged nor its final path.
    """
    _, shards = read_part(root, grid, task)
    for track, shard in shards.items():
        final = shard_path(root, grid, track, task)
        paths.make_folder(final.parent)
        try:
            paths.move(join(staging_path(root), shard["file"]), final)
        except IsADirectoryError:
            raise StoreError(f"{final} is a folder. Remove it and run encode again.") from None
        except FileNotFoundError:
            if not paths.exists(final):
                raise StoreError(
                    f"{final}: shard is missing. Remove {index_path(root, grid, task)} "
                    "and run encode again to make a new one."
                ) from None
        paths.flush_up(final.parent, store_root(root))
