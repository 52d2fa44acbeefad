"""The rows of a plan: their columns, and reading them from the parts of a store's plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pyarrow as pa

from ops.paths import AnyPath
from pipelines.store import (
    CARRIED_FIELDS,
    StoreError,
    checked_table,
    corrupt_as,
    open_parquet,
    plan_path,
)

PLAN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.large_string(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("grid", pa.large_string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("replaces", pa.large_string()),  # "grid/row" of the same image's older content
        *CARRIED_FIELDS,
    ]
)
BATCH = 65536  # rows of a plan in memory at once


def corrupt_plan(path: AnyPath) -> AbstractContextManager[None]:
    """Raise what the body, which reads a part of a plan at `path`, finds wrong as a StoreError."""
    return corrupt_as(
        lambda error: StoreError(f"{path}: corrupt plan ({error}). Restore it from a copy.")
    )


def planned_rows(root: AnyPath, num_parts: int, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Some columns of every planned row, oldest first, in batches.

    Raises StoreError if a part of the plan is corrupt.
    """
    schema = pa.schema([PLAN_SCHEMA.field(name) for name in columns])
    # So that they go together with tables of unknown origin.
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    for part in range(num_parts):
        path = plan_path(root, part)
        with corrupt_plan(path):
            for batch in open_parquet(path).iter_batches(BATCH, columns=list(columns)):
                yield checked_table(pa.Table.from_batches([batch]), schema).cast(nullable)
