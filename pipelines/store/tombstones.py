"""Tombstones: rows whose images are gone from the input are marked, never removed.

Like the plan, the list grows by parts and no part is ever rewritten.
"""

from __future__ import annotations

import pyarrow as pa

from ops import paths
from ops.paths import AnyPath
from pipelines.store.layout import StoreError, num_parts, tombstones_path
from pipelines.store.parquet import checked_table, corrupt_as, open_parquet, parquet_bytes

TOMBSTONE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("grid", pa.large_string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)


def write_tombstones(root: AnyPath, table: pa.Table) -> None:
    """Mark the rows of `table` (key, grid, row) in a new part.

    Raises StoreError where another process has just written that part.
    """
    path = tombstones_path(root, _num_parts(root))
    data = parquet_bytes(table.select(TOMBSTONE_SCHEMA.names).cast(TOMBSTONE_SCHEMA))
    if not paths.create_once(path, data):
        raise StoreError(f"{path} was written by another process. Run the command again.")
    paths.flush(root)  # an earlier run may have been killed between making the folder and this


def read_tombstones(root: AnyPath) -> pa.Table:
    """Every marked row, TOMBSTONE_SCHEMA, oldest first; StoreError where a part is corrupt."""
    parts = [_read(tombstones_path(root, part)) for part in range(_num_parts(root))]
    return pa.concat_tables([TOMBSTONE_SCHEMA.empty_table(), *parts])


def _num_parts(root: AnyPath) -> int:
    return num_parts(tombstones_path(root, 0).parent)


def _read(path: AnyPath) -> pa.Table:
    with corrupt_as(
        lambda error: StoreError(f"{path}: corrupt ({error}). Restore it from a copy.")
    ):
        return checked_table(open_parquet(path).read(), TOMBSTONE_SCHEMA)
