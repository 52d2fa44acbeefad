"""Files that are read by ranges, each a request to a server, as seekable binary files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

LEAST_AHEAD, MOST_AHEAD = 64 << 10, 1 << 20  # bytes of a window of ReadAhead

#: At most `size` bytes from `offset` on: fewer where the file ends before.
ReadRange = Callable[[int, int], bytes]


class RangeReader(io.RawIOBase):
    """A file of `size` bytes, one request for each read; its first bytes `head` are kept."""

    def __init__(self, read_range: ReadRange, size: int, head: bytes = b"") -> None:
        super().__init__()
        self._read_range, self._size, self._head, self._place = read_range, size, head, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} is before the beginning")
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._place)
        if wanted <= 0:
            return 0
        end = self._place + wanted
        if end <= len(self._head):
            data = self._head[self._place : end]
        else:
            data = self._read_range(self._place, wanted)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class ReadAhead:
    """Reads at rising offsets through a window of the file, for walks from header to header.

    Where the headers lie close together the window grows, until the file is read in large pieces;
    where they lie far apart it shrinks, and what is between them is not read.
    """

    def __init__(self, read_range: ReadRange) -> None:
        self._read_range = read_range
        self._start, self._window, self._ahead = 0, b"", LEAST_AHEAD

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on: fewer where the file ends before."""
        end = self._start + len(self._window)
        if not (self._start <= offset and offset + size <= end):
            near = end <= offset + size and offset <= end + self._ahead
            self._ahead = (
                min(2 * self._ahead, MOST_AHEAD) if near else max(self._ahead // 2, LEAST_AHEAD)
            )
            self._start = offset
            self._window = self._read_range(offset, max(size, self._ahead))
        place = offset - self._start
        return self._window[place : place + size]
