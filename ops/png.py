"""PNG files written strip by strip, for images larger than memory.

Each row gets the filter with the smallest sum of absolute differences (W3C PNG, third edition,
sections 9 and 12.7); all rows form one zlib stream. That of a larger image is compressed in bands
of a fixed size, each with the end of the one before as its dictionary, as pigz does: in any number
of threads, with the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ops.files import atomic_path

Rows = np.ndarray[Any, np.dtype[np.uint8]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = 3
LEVEL = 6  # zlib's default
CHUNK_BYTES = 1 << 16  # of every IDAT chunk but the last, so that strip sizes change nothing
FILTERED_BYTES = 1 << 20  # of rows filtered at a time, to stay in the processor's cache
UNBANDED_BYTES = 1 << 22  # of filtered rows: with more, an image is compressed in bands
BAND_BYTES = 1 << 19  # of filtered rows in a band, about
DICTIONARY_BYTES = 1 << 15  # as far as deflate refers back


def write_png_strips(
    path: Path, width: int, height: int, strips: Iterable[Rows], threads: int = 1
) -> None:
    """Write an image from its strips, uint8 (h, width, 3), top to bottom, atomically.

    Only one strip is in memory at a time, and two bands for each of `threads`, which do not change
    the file. Raises ValueError unless the strips make `height` rows of `width` pixels.
    """
    rows = _checked_rows(width, height, strips)
    if height * (1 + width * CHANNELS) <= UNBANDED_BYTES:
        stream = _compressed(_filtered(width, rows))
    else:
        stream = _compressed_in_bands(width, rows, threads)
    with atomic_path(path) as partial, open(partial, "xb") as file:
        file.write(SIGNATURE)
        # 8 bits, RGB, deflate, adaptive filters, not interlaced
        _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        for data in _cut(stream):
            _write_chunk(file, b"IDAT", data)
        _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _cut(stream: Iterable[bytes]) -> Iterator[bytes]:
    """A stream cut to the size of IDAT chunks; what is left at the end goes into the last one."""
    pending = bytearray()
    last = b""
    for piece in stream:
        pending += last
        while len(pending) >= CHUNK_BYTES:
            yield bytes(pending[:CHUNK_BYTES])
            del pending[:CHUNK_BYTES]
        last = piece
    yield bytes(pending) + last


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One zlib stream of all pieces."""
    compressor = zlib.compressobj(LEVEL)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def _checked_rows(width: int, height: int, strips: Iterable[Rows]) -> Iterator[Rows]:
    """The strips as rows (h, 3 * width); ValueError where they do not make the image."""
    done = 0
    for strip in strips:
        if strip.shape[1:] != (width, CHANNELS):
            raise ValueError(f"a strip of shape {strip.shape} in an image {width} pixels wide")
        yield np.ascontiguousarray(strip).reshape(len(strip), width * CHANNELS)
        done += len(strip)
    if done != height:
        raise ValueError(f"{done} rows for an image of {height}")


def _filtered(width: int, strips: Iterable[Rows]) -> Iterator[bytes]:
    """Filtered rows: the filter's number, then the differences, for each row."""
    above = np.zeros(width * CHANNELS, np.uint8)
    rows_per_part = max(1, FILTERED_BYTES // (width * CHANNELS))
    for rows in strips:
        for first in range(0, len(rows), rows_per_part):
            part = rows[first : first + rows_per_part]
            yield _best_filters(part, above).tobytes()
            above = part[-1]


# --- bands


def _compressed_in_bands(width: int, strips: Iterable[Rows], threads: int) -> Iterator[bytes]:
    """One zlib stream of all filtered rows; `threads` filter and compress one band each."""
    checksum = 1
    yield zlib.compressobj(LEVEL).flush()[:2]  # the header of such a stream
    waiting: deque[Future[tuple[bytes, bytes]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for before, rows in _bands(width, strips):
            waiting.append(pool.submit(_compressed_band, before, rows))
            if len(waiting) >= 2 * threads:
                filtered, compressed = waiting.popleft().result()
                checksum = zlib.adler32(filtered, checksum)
                yield compressed
        for future in waiting:
            filtered, compressed = future.result()
            checksum = zlib.adler32(filtered, checksum)
            yield compressed
    end = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush()  # an empty last block
    yield end + struct.pack(">I", checksum)


def _bands(width: int, strips: Iterable[Rows]) -> Iterator[tuple[Rows, Rows]]:
    """The rows of each band and those before it, of which all but the first are its dictionary.

    Above the image is a row of zeros, as the filters have it.
    """
    row_bytes = 1 + width * CHANNELS
    per_band, in_dictionary = max(1, BAND_BYTES // row_bytes), -(-DICTIONARY_BYTES // row_bytes)
    before = np.zeros((1, width * CHANNELS), np.uint8)
    rows = before[:0]
    for strip in strips:
        rows = np.concatenate([rows, strip])
        while len(rows) >= per_band:
            band, rows = rows[:per_band], rows[per_band:]
            yield before, band
            before = np.concatenate([before, band])[-in_dictionary - 1 :]
    if len(rows):
        yield before, rows


def _compressed_band(before: Rows, rows: Rows) -> tuple[bytes, bytes]:
    """A band's filtered rows, and their part of the stream, whole bytes."""
    dictionary_rows = len(before) - 1
    filtered = _best_filters(np.concatenate([before[1:], rows]), before[0])
    dictionary = filtered[:dictionary_rows].tobytes()[-DICTIONARY_BYTES:]
    data = filtered[dictionary_rows:].tobytes()
    raw = partial(zlib.compressobj, LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    compressor = raw(zdict=dictionary) if dictionary else raw()
    return data, compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _best_filters(rows: Rows, above: Rows) -> Rows:
    """(h, 1 + 3w) for rows (h, 3w) and the row above them, each with its best filter."""
    up = np.concatenate([above[None], rows[:-1]])
    left, upper_left = _shifted_right(rows), _shifted_right(up)
    candidates = {
        1: rows - left,
        2: rows - up,
        3: rows - ((left.astype(np.uint16) + up) // 2).astype(np.uint8),
        4: rows - _paeth(left, up, upper_left),
    }
    # The heuristic of section 12.7: the sum of absolute differences, taken as signed bytes.
    costs = [
        np.abs(residual.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)
        for residual in candidates.values()
    ]
    best = np.argmin(costs, axis=0)
    filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    for position, (number, residual) in enumerate(candidates.items()):
        chosen = best == position
        filtered[chosen, 0] = number
        filtered[chosen, 1:] = residual[chosen]
    return filtered


def _shifted_right(rows: Rows) -> Rows:
    """Each pixel's left neighbour; 0 for the first."""
    shifted = np.zeros_like(rows)
    shifted[:, CHANNELS:] = rows[:, :-CHANNELS]
    return shifted


def _paeth(left: Rows, up: Rows, upper_left: Rows) -> Rows:
    """Whichever of the three is nearest to left + up - upper_left; ties in that order."""
    a, b, c = (part.astype(np.int16) for part in (left, up, upper_left))
    to_a, to_b = np.abs(b - c), np.abs(a - c)
    to_c = np.abs(a + b - 2 * c)
    nearest: Rows = np.where(
        (to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, upper_left)
    )
    return nearest
