"""PNG files written strip by strip, so that a picture larger than memory can become one.

Each row is filtered in the way that leaves the smallest differences (W3C PNG, third edition,
sections 9 and 12.7), then all go through one zlib stream.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ops.files import atomic_path

Rows = np.ndarray[Any, np.dtype[np.uint8]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = 3
LEVEL = 6  # zlib's own compromise
CHUNK_BYTES = 1 << 16  # of an IDAT chunk, but for the last: however the strips are cut
FILTERED_BYTES = 1 << 20  # of rows filtered at a time: they stay in the processor's cache


def write_png_strips(path: Path, width: int, height: int, strips: Iterable[Rows]) -> None:
    """Write a picture from its strips, uint8 (h, width, 3), top to bottom; the file appears whole.

    Only one strip is in memory at a time. Raises ValueError when the strips' rows are not `height`
    rows of `width` pixels.
    """
    with atomic_path(path) as partial, open(partial, "xb") as file:
        file.write(SIGNATURE)
        # 8 bits, RGB, deflate, adaptive filters, not interlaced
        _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        for data in _compressed(_filtered(width, height, strips)):
            _write_chunk(file, b"IDAT", data)
        _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One zlib stream of all pieces, in parts fit for IDAT chunks."""
    compressor = zlib.compressobj(LEVEL)
    waiting = bytearray()
    for piece in pieces:
        waiting += compressor.compress(piece)
        while len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting[:CHUNK_BYTES])
            del waiting[:CHUNK_BYTES]
    yield bytes(waiting) + compressor.flush()


def _filtered(width: int, height: int, strips: Iterable[Rows]) -> Iterator[bytes]:
    """The rows as the file holds them: a filter's number, then what that filter leaves."""
    above = np.zeros(width * CHANNELS, np.uint8)
    at_once = max(1, FILTERED_BYTES // (width * CHANNELS))
    done = 0
    for strip in strips:
        if strip.shape[1:] != (width, CHANNELS):
            raise ValueError(f"a strip of shape {strip.shape} in a picture {width} pixels wide")
        rows = np.ascontiguousarray(strip).reshape(len(strip), width * CHANNELS)
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            yield _best_filters(part, above).tobytes()
            above = part[-1]
        done += len(rows)
    if done != height:
        raise ValueError(f"{done} rows for a picture of {height}")


def _best_filters(rows: Rows, above: Rows) -> Rows:
    """(h, 1 + 3w) for rows (h, 3w) and the row above them: each by its own best filter."""
    up = np.concatenate([above[None], rows[:-1]])
    left, upper_left = _moved_right(rows), _moved_right(up)
    candidates = {
        1: rows - left,
        2: rows - up,
        3: rows - ((left.astype(np.uint16) + up) // 2).astype(np.uint8),
        4: rows - _paeth(left, up, upper_left),
    }
    # As signed bytes: the sum of their sizes guesses how well a row will pack.
    costs = [
        np.abs(left_over.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)
        for left_over in candidates.values()
    ]
    best = np.argmin(costs, axis=0)
    filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    for place, (number, left_over) in enumerate(candidates.items()):
        chosen = best == place
        filtered[chosen, 0] = number
        filtered[chosen, 1:] = left_over[chosen]
    return filtered


def _moved_right(rows: Rows) -> Rows:
    """Each pixel's left neighbour; black before the first."""
    moved = np.zeros_like(rows)
    moved[:, CHANNELS:] = rows[:, :-CHANNELS]
    return moved


def _paeth(left: Rows, up: Rows, upper_left: Rows) -> Rows:
    """Whichever of the three lies nearest to left + up - upper_left; ties go in this order."""
    a, b, c = (part.astype(np.int16) for part in (left, up, upper_left))
    to_a, to_b = np.abs(b - c), np.abs(a - c)
    to_c = np.abs(a + b - 2 * c)
    nearest: Rows = np.where(
        (to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, upper_left)
    )
    return nearest
