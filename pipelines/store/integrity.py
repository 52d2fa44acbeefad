"""Integrity of a shard: every row read again and compared with its index line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.store.shards import row_checksums, shard_chunks
from pipelines.store.zarr_metadata import RowForm, StoreAttributes, fill_value, row_form

Codes = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class CorruptRows(NamedTuple):
    """The corrupt parts of a shard's file."""

    rows: Mask  # (n,) rows that differ from the index
    file: bool  # whether the file's hash differs: also where only bytes after the rows do


def check_shard(
    path: Path, sha256: str, index: pa.Table, grid: str, track: str, attributes: StoreAttributes
) -> CorruptRows:
    """Compare a shard's file with its hash and its rows with their lines of `index`.

    Raises OSError where the file cannot be read.
    """
    data = path.read_bytes()
    provenance = attributes.tracks[track]
    form = row_form(grid, provenance)
    checksums = index["checksum"].to_numpy()
    ok = pc.equal(index["status"], "ok").to_numpy()
    wrong = np.zeros(len(index), bool)
    for first, end, codes in _chunks(data, len(index), form, attributes):
        here = slice(first, end)
        if codes is None:
            wrong[here] = True
        else:
            wrong[here] = np.array(row_checksums(codes), np.uint32) != checksums[here]
            wrong[here] |= ~_fitting(codes, ok[here], provenance.get("codebook_size"))
    return CorruptRows(wrong, hashlib.sha256(data).hexdigest() != sha256)


def _chunks(
    data: bytes, num_rows: int, form: RowForm, attributes: StoreAttributes
) -> Iterator[tuple[int, int, Codes | None]]:
    """(first row, end, codes) of each run of rows; codes are None where they cannot be read."""
    shape, dtype = form
    if attributes.compress:
        yield from shard_chunks(data, num_rows, attributes.rows_per_task, shape, dtype)
        return
    row_codes = shape[0] * shape[1]
    held = min(num_rows, len(data) // (row_codes * dtype.itemsize))
    yield 0, held, np.frombuffer(data, dtype, held * row_codes).reshape(held, *shape)
    yield held, num_rows, None


def _fitting(codes: Codes, ok: Mask, codebook_size: int | None) -> Mask:
    """Which rows (n, h, w) hold what `ok` (n,) promises: codes of the codebook, or else fill."""
    if codebook_size is None:
        empty_or_ok: Mask = ok | np.isnan(codes).all((1, 2))
        return empty_or_ok
    fill = fill_value(codes.dtype)
    holds_codes = codes.max((1, 2), initial=0) < codebook_size
    holds_fill = codes.min((1, 2), initial=fill) == fill
    fitting: Mask = np.where(ok, holds_codes, holds_fill)
    return fitting
