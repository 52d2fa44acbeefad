"""Which rows of a shard are not what the index says: every one of them read and checked again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.store.layout import StoreAttributes, code_dtype, fill_value, grid_shape
from pipelines.store.shards import row_checksums, shard_chunks

Codes = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Damage(NamedTuple):
    """What is wrong with a shard's file."""

    rows: Mask  # (n,) rows that are not what they should be
    file: bool  # whether the file as a whole is not: then something is, if only behind the rows


def shard_damage(
    path: Path, sha256: str, index: pa.Table, grid: str, track: str, attributes: StoreAttributes
) -> Damage:
    """Hold a shard's file against its hash, and its rows against their lines of `index`.

    Raises OSError where the file cannot be read.
    """
    data = path.read_bytes()
    codebook_size = attributes.tracks[track]["codebook_size"]
    checksums = index["checksum"].to_numpy()
    ok = pc.equal(index["status"], "ok").to_numpy()
    wrong = np.zeros(len(index), bool)
    for first, end, codes in _chunks(data, len(index), grid, codebook_size, attributes):
        here = slice(first, end)
        if codes is None:
            wrong[here] = True
        else:
            wrong[here] = np.array(row_checksums(codes), np.uint32) != checksums[here]
            wrong[here] |= ~_fitting(codes, ok[here], codebook_size)
    return Damage(wrong, hashlib.sha256(data).hexdigest() != sha256)


def _chunks(
    data: bytes, num_rows: int, grid: str, codebook_size: int, attributes: StoreAttributes
) -> Iterator[tuple[int, int, Codes | None]]:
    """(first row, end, codes) of the pieces of a shard; codes are None where there are none."""
    shape, dtype = grid_shape(grid), code_dtype(codebook_size)
    if attributes.compress:
        yield from shard_chunks(data, num_rows, attributes.rows_per_task, shape, dtype)
        return
    row_codes = shape[0] * shape[1]
    held = min(num_rows, len(data) // (row_codes * dtype.itemsize))
    yield 0, held, np.frombuffer(data, dtype, held * row_codes).reshape(held, *shape)
    yield held, num_rows, None


def _fitting(codes: Codes, ok: Mask, codebook_size: int) -> Mask:
    """Which rows (n, h, w) hold codes of the codebook, or fill where `ok` (n,) says there are
    none."""
    fill = fill_value(codes.dtype)
    holds_codes = codes.max((1, 2), initial=0) < codebook_size
    holds_fill = codes.min((1, 2), initial=fill) == fill
    fitting: Mask = np.where(ok, holds_codes, holds_fill)
    return fitting
