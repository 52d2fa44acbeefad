"""Files mapped into memory side by side, so that one indexing call reaches all of them.

A stream's batch has its rows in any number of shards. Asking each shard's own map for a few rows
costs more than the rows themselves; in one map of all, a batch costs what a plain array would.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAP_FIXED = 0x10  # the same on Linux, macOS and the BSDs; Python's mmap has no name for it


def can_lie_side_by_side(file_bytes: int) -> bool:
    """Whether files of so many bytes each can be mapped one behind the other: whole pages can."""
    return os.name == "posix" and file_bytes % mmap.ALLOCATIONGRANULARITY == 0


def map_side_by_side(
    files: Iterable[tuple[int, Path]], count: int, file_bytes: int
) -> NDArray[np.uint8]:
    """A read-only array of `count` places of `file_bytes` each, files (place, path) mapped there.

    What lies in a file past its place is left out; where there is no file, or it ends, the array
    has zeros. Raises OSError where a file cannot be mapped.
    """
    # Not writable, so that a reservation larger than the memory is no promise of memory.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    whole = mmap.mmap(-1, count * file_bytes, flags=flags, prot=mmap.PROT_READ)
    array = np.frombuffer(whole, np.uint8)  # keeps `whole` alive, which unmaps all at its end
    c_mmap = ctypes.CDLL(None, use_errno=True).mmap
    c_mmap.restype = ctypes.c_void_p
    c_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    for place, path in files:
        address = array.ctypes.data + place * file_bytes
        descriptor = os.open(path, os.O_RDONLY)
        try:
            length = min(file_bytes, os.fstat(descriptor).st_size)
            fixed = mmap.MAP_SHARED | MAP_FIXED
            if c_mmap(address, length, mmap.PROT_READ, fixed, descriptor, 0) != address:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        finally:
            os.close(descriptor)
    return array
