"""Drawing grids of codes of any size, cell by cell, through windows that slide over the canvas.

One loop serves all: a grid no larger than the window is one window that never moves. Every window
of the row band being drawn keeps a KV cache. When the raster comes back to a window, it first
reads the codes that its neighbours drew since; so what a cell is drawn from is always its whole
prefix in the window, and no cell is read before it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ops.windows import Window, check_stride, raster, window_of, window_start
from prior.gpt import GPT
from prior.kv_cache import KVCache
from prior.sampling import Draw, SamplingSettings, draw, guided

CACHE_BYTES = 4 << 30


class WindowCaches:
    """The KV caches of one row band's windows: made once, then handed on from band to band."""

    def __init__(self, make: Callable[[], KVCache], memory: int) -> None:
        self._make = make
        self._memory = memory
        self._kept: dict[Window, KVCache] = {}
        self._spare: list[KVCache] = []
        self._window: Window | None = None
        self._cache = make()
        self._needed_again = False

    def enter(self, window: Window, needed_again: bool) -> KVCache:
        """The cache of `window`: as it was left in this row band, or empty.

        `needed_again` tells whether a later row of the canvas is drawn in the same window.
        """
        if window != self._window:
            self._leave(window)
            self._window = window
        self._needed_again = needed_again
        return self._cache

    def _leave(self, following: Window) -> None:
        if self._window is not None and self._window.row != following.row:
            self._spare += self._kept.values()
            self._kept.clear()
        elif self._window is not None and self._needed_again and self._has_room():
            self._kept[self._window] = self._cache
            self._cache = self._spare.pop() if self._spare else self._make()
        if following in self._kept:
            self._spare.append(self._cache)
            self._cache = self._kept.pop(following)
        else:
            self._cache.length = 0

    def _has_room(self) -> bool:
        return (len(self._kept) + 2) * self._cache.nbytes <= self._memory


@torch.inference_mode()
def paint_codes(
    model: GPT,
    prefixes: Tensor,
    uniforms: Tensor,
    settings: SamplingSettings,
    *,
    stride: int,
    null_prefixes: Tensor | None = None,
    forced: Tensor | None = None,
    on_cell: Callable[[], None] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Draw:
    """Codes (B, rows, columns), one drawn with each of `uniforms` (B, rows, columns).

    With stride 1, the paper's rule: each cell is drawn in the middle of a window of its own, or
    nearer its edge at the canvas's border. With stride s, windows start at multiples of s, and
    one window draws up to s x s cells; at most model.config.window / 2.

    `prefixes` (B, C) are the condition tokens before every window. `null_prefixes`, the same when
    nothing is told, are needed when settings.guides. `forced` (rows, columns)
    holds known codes, and -1 where one is to be drawn. `on_cell` is called after every cell.
    `cache_bytes` bounds the KV caches; with less, more is read anew.
    Raises ConfigError when the stride does not suit the window.
    """
    size, (batch, rows, columns) = model.config.window, uniforms.shape
    check_stride(stride, size)
    if forced is None:
        forced = torch.full((rows, columns), -1)
    codes = forced.to(prefixes.device).expand(batch, rows, columns).contiguous()
    log_probabilities = torch.zeros(codes.shape, device=codes.device)
    known = (forced >= 0).tolist()
    if settings.guides:
        assert null_prefixes is not None
        prefixes = torch.cat([prefixes, null_prefixes])
    positions = model.positions(min(size, rows), min(size, columns))
    # The window's last code is never read: nothing in the window comes after it.
    caches = WindowCaches(lambda: KVCache(model, len(prefixes), len(positions) - 1), cache_bytes)
    for row, column in raster(rows, columns):
        if not known[row][column]:
            window = window_of(row, column, rows, columns, size, stride)
            needed_again = (
                row + 1 < rows and window_start(row + 1, rows, size, stride) == window.row
            )
            cache = caches.enter(window, needed_again)
            inside = codes[:, *window.slices()].flatten(1)[:, : window.offset_of(row, column)]
            logits = read_on(model, cache, prefixes, inside, positions)
            if settings.guides:
                scale = settings.guidance_at(inside.shape[1] / (window.rows * window.columns))
                logits = guided(logits[:batch], logits[batch:], scale)
            drawn = draw(logits, uniforms[:, row, column], settings)
            codes[:, row, column], log_probabilities[:, row, column] = drawn
        if on_cell is not None:
            on_cell()
    return Draw(codes, log_probabilities)


def read_on(
    model: GPT, cache: KVCache, prefixes: Tensor, codes: Tensor, positions: Tensor
) -> Tensor:
    """Logits (P, K) of the code after `codes` (B, T); reads only what the cache has not.

    `prefixes` (P, C) with P = B, or P = 2B where guidance reads the same codes behind two prefixes.
    """
    tokens = torch.cat([prefixes, codes.repeat(len(prefixes) // len(codes), 1)], dim=1)
    unread = slice(cache.length, tokens.shape[1])
    return model.next_logits(tokens[:, unread], positions[unread], cache)
