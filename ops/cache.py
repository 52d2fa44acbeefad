"""A cache of arrays bounded by their size in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)
Array = np.ndarray[Any, Any]


class ArrayCache(Generic[Key]):
    """Arrays by key, up to `max_bytes`; the least recently used are dropped first.

    The newest array is always kept, even one larger than `max_bytes`: reading it row by row
    would otherwise load it again for each row. Thread-safe. A pickled cache arrives empty:
    another process fills its own.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._arrays: OrderedDict[Key, Array] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The size of all cached arrays together."""
        return self._nbytes

    def get(self, key: Key) -> Array | None:
        """The array of `key`, which now counts as just used; None where it is not cached."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: Key, array: Array) -> None:
        """Cache `array` under `key`, in place of an older one."""
        with self._lock:
            replaced = self._arrays.pop(key, None)
            self._arrays[key] = array
            self._nbytes += array.nbytes - (0 if replaced is None else replaced.nbytes)
            while len(self._arrays) > 1 and self._nbytes > self.max_bytes:
                self._nbytes -= self._arrays.popitem(last=False)[1].nbytes

    def __reduce__(self) -> tuple[type[ArrayCache[Key]], tuple[int]]:
        return ArrayCache, (self.max_bytes,)
