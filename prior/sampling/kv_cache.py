"""Key-value caches: one for a window's sequences, and a bounded pool of them for all windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from ops.windows import FixedOrder, Wavefront, Window
from prior.models import GPTConfig


class Cache(Protocol):
    """What a decoder keeps of the tokens it has read."""

    length: int  # number of tokens read; set it back to read others in their place


CacheT = TypeVar("CacheT", bound=Cache)


class KVCache:
    """Keys and values of the tokens read so far, so that each token is read once."""

    def __init__(self, config: GPTConfig, like: Tensor, batch: int, length: int) -> None:
        """Room for `length` tokens of `batch` sequences, with the dtype and device of `like`."""
        shape = (batch, config.num_heads, length, config.head_dim)
        self.keys = [like.new_empty(shape) for _ in range(config.num_layers)]
        self.values = [like.new_empty(shape) for _ in range(config.num_layers)]
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, head_dim) to one layer; returns all its keys and values.

        `length` stays: the caller advances it when every layer has been extended.
        """
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def cache_bytes(config: GPTConfig, like: Tensor, batch: int, length: int) -> int:
    """Bytes that such a KVCache takes."""
    return 2 * config.num_layers * batch * length * config.width * like.element_size()


class WindowCaches(Generic[CacheT]):
    """The caches of the windows in progress, at most `max_caches` at a time.

    A window gets back the cache it left, or an empty one. Caches are allocated once and reused:
    first those of windows that no row will enter again, then, when the pool is full, the one whose
    window is entered last.
    """

    def __init__(
        self, make: Callable[[], CacheT], max_caches: int, schedule: Wavefront | FixedOrder
    ) -> None:
        self._make, self._max_caches, self._schedule = make, max_caches, schedule
        self._caches: dict[Window, CacheT] = {}
        self._unused: list[CacheT] = []

    def enter(self, windows: Sequence[Window]) -> list[CacheT]:
        """The caches of the windows of the schedule's current cells; all windows differ."""
        return [self._caches.get(window) or self._allocate(window, windows) for window in windows]

    def clear(self) -> None:
        """Empty all caches, so that what follows depends on the codes only."""
        self._unused += self._caches.values()
        self._caches.clear()

    def _allocate(self, window: Window, in_use: Collection[Window]) -> CacheT:
        distances: dict[Window, float] = {}
        for cached in self._caches:
            if cached not in in_use:
                distance = self._schedule.cells_until(cached)
                distances[cached] = math.inf if distance is None else distance
        furthest = max(distances, key=lambda cached: distances[cached], default=None)
        full = len(self._caches) >= self._max_caches
        if furthest is not None and (full or distances[furthest] == math.inf):
            cache = self._caches.pop(furthest)
        else:
            cache = self._unused.pop() if self._unused else self._make()
        cache.length = 0
        self._caches[window] = cache
        return cache
