"""Partial shards: rows of an unfinished task, kept so that a killed worker loses little.

A long task writes the rows it has done to the staging folder now and then. Each partial shard is
one file that carries its own hash: a torn, corrupt or foreign one is ignored and its rows are made
again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ops import paths
from ops.files import NotRegularError, parse_json
from ops.paths import AnyPath, join
from pipelines.store.layout import GRID, NUMBER, StoreError, staging_path
from pipelines.store.parquet import METADATA_KEY, PARQUET_ERRORS

HASH_BYTES = 32  # sha256, before everything else in the file
NAME = re.compile(rf"({GRID.pattern})-({NUMBER})-\d+-\d+\.partial-shard")
CODES = "codes"  # the column of the rows' raw codes
MADE_IN = "made_in"  # the column of the environments that each row was made in

Codes = np.ndarray[Any, Any]


class PartialShard(NamedTuple):
    """Rows `first` to before `first + len(lines)` of a task."""

    first: int
    codes: Codes  # (n, h, w)
    lines: pa.Table  # n lines, in columns of the writer's own
    made_in: list[tuple[str, ...]]  # for each row the environments it was made in


def write_partial_shard(
    root: AnyPath,
    grid: str,
    task: int,
    first: int,
    codes: Codes,
    lines: pa.Table,
    made_in: Sequence[tuple[str, ...]],
) -> None:
    """Keep codes (n, h, w), their n lines and environments; the file appears whole.

    Raises StoreError where another run has emptied the staging folder.
    """
    staging = staging_path(root)
    description = {"first": first, "dtype": codes.dtype.str, "shape": codes.shape[1:]}
    table = lines.replace_schema_metadata({METADATA_KEY: json.dumps(description)})
    table = table.append_column(CODES, _as_binary(codes))
    table = table.append_column(MADE_IN, pa.array(map(list, made_in), pa.list_(pa.string())))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload = sink.getvalue().to_pybytes()
    # The name has the last row too, so that a shorter file never replaces a longer one.
    name = f"{grid}-{task}-{first}-{first + len(lines)}.partial-shard"
    try:
        data = hashlib.sha256(payload).digest() + payload
        paths.write_staged(join(staging, name), data)
        paths.flush(staging)
    except FileNotFoundError as error:
        raise StoreError(f"{staging} was emptied by another run ({error}).") from error


def read_partial_shards(root: AnyPath, grid: str, task: int) -> list[PartialShard]:
    """The intact partial shards of one task, by first row, then length; they may overlap."""
    found = [_read(path) for path in _files(root, grid, task)]
    return sorted((p for p in found if p is not None), key=lambda p: (p.first, len(p.lines)))


def remove_partial_shards(root: AnyPath, grid: str, task: int) -> None:
    """Remove the partial shards of a task that is committed."""
    for path in _files(root, grid, task):
        paths.remove(path)


def task_of_partial_shard(path: AnyPath) -> tuple[str, int] | None:
    """(grid, task) of a partial shard's file, by its name; None for other files."""
    match = NAME.fullmatch(path.name)
    return (match[1], int(match[4])) if match else None


def _files(root: AnyPath, grid: str, task: int) -> list[AnyPath]:
    return sorted(paths.matching(staging_path(root), f"{grid}-{task}-*.partial-shard"))


def _read(path: AnyPath) -> PartialShard | None:
    """The file's content; None where it is torn, or not as write_partial_shard writes it."""
    try:
        data = paths.read_whole(path, follow=False)
    except (OSError, NotRegularError):
        return None  # its task was committed meanwhile, or the disk cannot read it
    digest, payload = data[:HASH_BYTES], data[HASH_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        return _parse(payload)
    except PARQUET_ERRORS:
        return None


def _parse(payload: bytes) -> PartialShard:
    with pa.ipc.open_stream(payload) as reader:
        table = reader.read_all()
    table.validate(full=True)
    description = parse_json(table.schema.metadata[METADATA_KEY])
    rows = b"".join(table[CODES].to_pylist())
    codes = np.frombuffer(rows, description["dtype"]).reshape(-1, *description["shape"])
    if MADE_IN in table.column_names:
        made_in = [tuple(each) for each in table[MADE_IN].to_pylist()]
        table = table.drop_columns([MADE_IN])
    else:
        made_in = [()] * len(table)  # an earlier version wrote it
    lines = table.drop_columns([CODES]).replace_schema_metadata(None)
    if len(codes) != len(lines) or type(description["first"]) is not int:
        raise ValueError("it has other rows than it says")
    return PartialShard(description["first"], codes, lines, made_in)


def _as_binary(rows: Codes) -> pa.Array:
    """One value of fixed size for each row of (n, h, w)."""
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    buffer = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), len(rows), [None, buffer])
