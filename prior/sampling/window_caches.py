"""The KV caches of windows that slide over a canvas, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Generic

from ops.windows import InSequence, Wavefront, Window
from prior.sampling.decoder import CacheT


class WindowCaches(Generic[CacheT]):
    """Gives each window its cache as it was left, or an empty one where it had to go.

    Caches are made once and handed on: first those of windows that no row comes to any more, and
    where `most` are in use, the one that is needed last.
    """

    def __init__(
        self, make: Callable[[], CacheT], most: int, front: Wavefront | InSequence
    ) -> None:
        self._make, self._most, self._front = make, most, front
        self._kept: dict[Window, CacheT] = {}

    def enter(self, windows: Sequence[Window]) -> list[CacheT]:
        """The caches of `windows`, all different, in which the front draws now."""
        return [self._kept.get(window) or self._take(window, windows) for window in windows]

    def forget(self) -> None:
        """Empty every cache: what is drawn from here on follows from the codes alone."""
        self._kept.clear()

    def _take(self, window: Window, busy: Collection[Window]) -> CacheT:
        waits = {
            kept: math.inf if (wait := self._front.wait(kept)) is None else wait
            for kept in self._kept
            if kept not in busy
        }
        last = max(waits, key=lambda kept: waits[kept], default=None)
        full = len(self._kept) >= self._most
        if last is not None and (full or waits[last] == math.inf):
            cache = self._kept.pop(last)
            cache.length = 0
        else:
            cache = self._make()
        self._kept[window] = cache
        return cache
