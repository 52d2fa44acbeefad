"""Integrity of a shard: every row read again and compared with its index line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.paths import AnyPath, open_binary
from pipelines.store.shards import max_shard_size, row_checksums, shard_chunks, shard_size
from pipelines.store.zarr_metadata import RowForm, StoreAttributes, fill_value, row_form

RUN_BYTES = 16 << 20  # of a raw shard in memory at once

Codes = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class CorruptRows(NamedTuple):
    """The corrupt parts of a shard's file."""

    rows: Mask  # (n,) rows that differ from the index
    file: bool  # whether the file's hash differs: also where only bytes after the rows do


def check_shard(
    path: AnyPath, sha256: str, index: pa.Table, grid: str, track: str, attributes: StoreAttributes
) -> CorruptRows:
    """Compare a shard's file with its hash and its rows with their lines of `index`.

    No more is read than a shard of these rows can have. Raises OSError where the file cannot be
    read, NotRegularError where it is none.
    """
    provenance = attributes.tracks[track]
    form = row_form(grid, provenance)
    checksums = index["checksum"].to_numpy()
    ok = pc.equal(index["status"], "ok").to_numpy()
    wrong = np.zeros(len(index), bool)
    with open_binary(path, follow=False) as file:
        hashed = _Hashed(file)
        for first, end, codes in _chunks(hashed, len(index), form, attributes):
            here = slice(first, end)
            if codes is None:
                wrong[here] = True
            else:
                wrong[here] = np.array(row_checksums(codes), np.uint32) != checksums[here]
                wrong[here] |= ~_fitting(codes, ok[here], provenance.get("codebook_size"))
        # What a raw shard has after these rows: padding, and the index of its chunks.
        row_bytes = form.shape[0] * form.shape[1] * form.dtype.itemsize
        size = shard_size(len(index), attributes.rows_per_task, row_bytes)
        hashed.read(max(0, size - file.tell()))
        whole = not file.read(1) and hashed.digest.hexdigest() == sha256
    return CorruptRows(wrong, not whole)


class _Hashed:
    """A file read from its beginning, and the hash of what has been read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _chunks(
    file: _Hashed, num_rows: int, form: RowForm, attributes: StoreAttributes
) -> Iterator[tuple[int, int, Codes | None]]:
    """(first row, end, codes) of each run of rows; codes are None where they cannot be read."""
    shape, dtype = form
    row_bytes = shape[0] * shape[1] * dtype.itemsize
    if attributes.compress:
        data = file.read(max_shard_size(num_rows, attributes.rows_per_task, row_bytes))
        yield from shard_chunks(data, num_rows, attributes.rows_per_task, shape, dtype)
        return
    step = max(1, RUN_BYTES // row_bytes)
    for first in range(0, num_rows, step):
        end = min(first + step, num_rows)
        data = file.read((end - first) * row_bytes)
        held = len(data) // row_bytes
        codes = np.frombuffer(data[: held * row_bytes], dtype).reshape(held, *shape)
        yield first, first + held, codes
        if held < end - first:
            yield first + held, num_rows, None
            return


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
