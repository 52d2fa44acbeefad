"""The bytes of one shard file: a task's rows as Zarr's sharding codec lays them out.

Raw shards hold their rows contiguous from byte 0, to be memory-mapped; compressed ones hold chunks
of rows compressed by Blosc (bitshuffle and zstd), to be read whole. Both end in Zarr's shard index,
the offset and length of each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from pipelines.store.layout import StoreError
from pipelines.store.zarr_metadata import fill_value, inner_rows

Codes = np.ndarray[Any, Any]

MISSING_CHUNK = 2**64 - 1  # Zarr's offset and length of an inner chunk that a shard lacks
LEVEL = 5


def row_checksums(codes: Codes) -> list[int]:
    """crc32c of each row's bytes, for codes (n, h, w) as stored in a raw shard."""
    return [google_crc32c.value(row.tobytes()) for row in codes]


def shard_rows(num_rows: int, rows_per_task: int, compress: bool = False) -> int:
    """Rows in the shard file of a task of `num_rows`, rounded up to whole inner chunks."""
    step = inner_rows(rows_per_task, compress)
    return -(-num_rows // step) * step


def shard_size(num_rows: int, rows_per_task: int, row_bytes: int) -> int:
    """Bytes of a raw shard's file: its rows and its shard index."""
    return shard_rows(num_rows, rows_per_task) * row_bytes + _index_size(rows_per_task, False)


def max_shard_size(num_rows: int, rows_per_task: int, row_bytes: int) -> int:
    """The most bytes that a compressed shard's file can have: its chunks may be incompressible."""
    rows = shard_rows(num_rows, rows_per_task, True)
    chunks = rows // inner_rows(rows_per_task, True)
    overhead: int = chunks * blosc.MAX_OVERHEAD
    return rows * row_bytes + overhead + _index_size(rows_per_task, True)


def shard_bytes(codes: Codes, rows_per_task: int, compress: bool = False) -> bytes:
    """The file of one shard: rows (n, h, w), padded to whole inner chunks, then the shard index.

    Chunks past the last row are marked missing, so a task of few rows makes a small file.
    """
    step = inner_rows(rows_per_task, compress)
    total = shard_rows(len(codes), rows_per_task, compress)
    rows = np.full((total, *codes.shape[1:]), fill_value(codes.dtype), codes.dtype)
    rows[: len(codes)] = codes
    chunks = [rows[first : first + step] for first in range(0, total, step)]
    encoded = [_compressed(chunk) if compress else chunk.tobytes() for chunk in chunks]
    places = np.full((rows_per_task // step, 2), MISSING_CHUNK, "<u8")  # (offset, length)
    lengths = np.array([len(chunk) for chunk in encoded], "<u8")
    places[: len(encoded), 1] = lengths
    places[: len(encoded), 0] = np.cumsum(lengths) - lengths
    index = places.tobytes()
    checksum: int = google_crc32c.value(index)
    return b"".join(encoded) + index + checksum.to_bytes(4, "little")


def shard_chunks(
    data: bytes, num_rows: int, rows_per_task: int, row_shape: tuple[int, int], dtype: np.dtype[Any]
) -> Iterator[tuple[int, int, Codes | None]]:
    """(first row, end, codes (end - first, h, w)) of each chunk of a compressed shard's file.

    Codes are None where they cannot be decompressed. Rows past `num_rows` are left out.
    """
    step = inner_rows(rows_per_task, True)
    places = _places(data, rows_per_task)
    for number, first in enumerate(range(0, num_rows, step)):
        end = min(first + step, num_rows)
        rows = None
        if places is not None:
            offset, length = (int(n) for n in places[number])
            rows = _decompressed(data[offset : offset + length], (step, *row_shape), dtype)
        yield first, end, None if rows is None else rows[: end - first]


def decode_shard(
    data: bytes, num_rows: int, rows_per_task: int, row_shape: tuple[int, int], dtype: np.dtype[Any]
) -> Codes:
    """The rows (num_rows, h, w) of a compressed shard's file; StoreError where it is corrupt."""
    try:
        codes = np.empty((num_rows, *row_shape), dtype)
    except MemoryError as error:
        raise StoreError(f"{num_rows} rows of this shard need more memory than there is") from error
    for first, end, rows in shard_chunks(data, num_rows, rows_per_task, row_shape, dtype):
        if rows is None:
            raise StoreError(f"rows {first} to {end - 1} of this shard cannot be decoded")
        codes[first:end] = rows
    return codes


def _index_size(rows_per_task: int, compress: bool) -> int:
    """Bytes of a shard index: 16 for each inner chunk, 4 for their checksum."""
    return 16 * (rows_per_task // inner_rows(rows_per_task, compress)) + 4


def _places(data: bytes, rows_per_task: int) -> np.ndarray[Any, Any] | None:
    """(offset, length) of each chunk of a compressed shard; None where its index is corrupt."""
    index = data[-_index_size(rows_per_task, True) :]
    if len(index) < _index_size(rows_per_task, True):
        return None
    places, checksum = index[:-4], int.from_bytes(index[-4:], "little")
    if google_crc32c.value(places) != checksum:
        return None
    return np.frombuffer(places, "<u8").reshape(-1, 2)


def _compressed(chunk: Codes) -> bytes:
    # One Blosc block: with several, Blosc's threads write them in the order they are done, and the
    # same rows must always give the same bytes.
    compressed: bytes = blosc.compress(chunk, b"zstd", LEVEL, blosc.BITSHUFFLE, chunk.nbytes)
    return compressed


def _decompressed(data: bytes, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Codes | None:
    # Blosc trusts its header: the decompressed size at byte 4, the compressed one at byte 12.
    header = np.frombuffer(data[:16], "<u4")
    size = int(np.prod(shape)) * dtype.itemsize
    if len(header) < 4 or header[1] != size or header[3] != len(data):
        return None
    rows = np.empty(shape, dtype)
    try:
        blosc.decompress(data, rows)
    except (RuntimeError, ValueError):
        return None
    return rows
