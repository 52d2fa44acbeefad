"""Sampling grids of codes of any size, cell by cell, through a window that slides over the canvas.

The sliding window of Esser et al. (2021, section 3.3) with strides and KV caches. A grid no larger
than the window is the special case of one window. Each cell is predicted from its window's
condition and all codes before it in the window; no cell is read before it is sampled. Every window
has a KV cache; when a row enters a window again, the codes sampled at its left and above it since
then are read first. Rows are sampled in parallel, each a window behind the one above
(ops.windows.Wavefront), so that the cells of several rows, and of all samples, share a forward.

A prior that predicts its window in an order other than raster order (prior.orderings) has one
window, which must hold the whole canvas, and samples one cell of each sample in a forward.

Which cells share a forward depends only on the canvas, its known cells, the batch size and the
device type. Every forward of a sample therefore has the same shape, whatever the other samples in
the batch are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ops.config import ConfigError
from ops.windows import FixedOrder, Grid, Wavefront, Window, check_stride
from prior.conditions import Prefix
from prior.models import GPTConfig, SnailConfig
from prior.orderings import ROW_MAJOR
from prior.sampling.decoder import Decoder, Request
from prior.sampling.distributions import SampledCodes, SamplingSettings
from prior.sampling.drawing import draw_codes, logits_dtype
from prior.sampling.generation_config import DEFAULT_CACHE_MEMORY
from prior.sampling.kv_cache import Cache, CacheT, WindowCaches
from prior.sampling.snail_decoder import SnailDecoder

# Most sequences in a forward: with more, its time grows in proportion.
SEQUENCES_AT_ONCE = {"cpu": 64, "cuda": 256}


@torch.inference_mode()
def sample_codes(
    decoder: Decoder | SnailDecoder,
    prefix: Prefix,
    uniforms: Callable[[int], Tensor],
    settings: SamplingSettings,
    shape: tuple[int, int, int],
    *,
    stride: int,
    forced: Tensor | None = None,
    on_cells: Callable[[int, Tensor], None] | None = None,
    cache_memory: int = DEFAULT_CACHE_MEMORY,
    flush_every_rows: int | None = None,
) -> SampledCodes:
    """Codes of `shape` (B, rows, columns), each drawn with its entry of uniforms(row) (B, columns).

    With stride 1, the paper's rule: each cell is predicted in the middle of a window of its own, or
    nearer the window's edge at the canvas's border, where cells share windows. With stride s,
    windows start at multiples of s and one window predicts up to s x s cells; s is at most
    config.window / 2.

    prefix(window) returns condition tokens (P, C) with P = B or, when settings.guides, P = 2B, of
    which the last B are null tokens; a grid condition gives each window its own part. `forced`
    (rows, columns) or (B, rows, columns) holds known codes, and -1 where one is to be sampled: no
    forward is spent on cells that are known in all samples. on_cells(n, codes) is called when n
    more cells are done, with the codes so far and -1 elsewhere. `cache_memory` bounds the bytes of
    the KV caches, but there is always one. Before each row that is a multiple of
    `flush_every_rows`, all rows above are finished and the caches are dropped: with the rows above
    forced, the remaining ones come out the same bit for bit.

    Raises ConfigError for a stride that does not suit the window, and for a canvas or
    `flush_every_rows` that does not suit the prior's order.
    """
    _, rows, columns = shape
    grid = Grid(rows, columns, decoder.config.window, stride)
    check_stride(stride, grid.window)
    check_ordering(decoder.config, rows, columns, flush_every_rows)
    canvas = Canvas(decoder, prefix, settings, shape, forced)
    max_caches = max(1, cache_memory // canvas.cache_bytes)
    parallel_rows = parallel_rows_for(decoder.device, canvas.sequences, grid, max_caches)
    known_to_all = None if canvas.known is None else canvas.known.all(0)
    skipped = None if known_to_all is None else known_to_all.tolist()
    schedule: Wavefront | FixedOrder
    if canvas.order is None:
        schedule = Wavefront(grid, parallel_rows, skipped, flush_every_rows)
    else:
        schedule = FixedOrder(columns, canvas.order, skipped)
    caches = WindowCaches(canvas.new_cache, max_caches, schedule)
    row_uniforms: dict[int, Tensor] = {}
    if on_cells is not None and known_to_all is not None:
        on_cells(int(known_to_all.sum()), canvas.codes)
    for cells, windows, entered in steps_of(grid, schedule, caches, flush_every_rows):
        row_uniforms |= {row: uniforms(row) for row, _ in cells if row not in row_uniforms}
        requests = list(map(canvas.request, cells, windows, entered))
        numbers = torch.stack([row_uniforms[row][:, column] for row, column in cells])
        canvas.draw(cells, windows, decoder.next_features(requests), numbers)
        for row in [row for row in row_uniforms if row < schedule.first_open_row]:
            del row_uniforms[row]
        if on_cells is not None:
            on_cells(len(cells), canvas.codes)
    return SampledCodes(canvas.codes, canvas.log_probabilities)


def steps_of(
    grid: Grid,
    schedule: Wavefront | FixedOrder,
    caches: WindowCaches[CacheT],
    flush_every_rows: int | None,
) -> Iterator[tuple[list[tuple[int, int]], list[Window], list[CacheT]]]:
    """The cells to draw in each forward, with their windows and these windows' caches."""
    for cells in schedule:
        first_row, first_column = cells[0]
        if flush_every_rows is not None and first_row % flush_every_rows == first_column == 0:
            caches.clear()
        windows = [grid.window_of(*cell) for cell in cells]
        yield cells, windows, caches.enter(windows)


def check_ordering(
    config: GPTConfig | SnailConfig, rows: int, columns: int, flush_every_rows: int | None = None
) -> None:
    """Raise ConfigError for what needs raster order: a sliding window, and flush_every_rows."""
    if isinstance(config, SnailConfig) or config.ordering == ROW_MAJOR:
        return
    order = f"This prior predicts codes in the order {config.ordering!r}"
    if max(rows, columns) > config.window:
        raise ConfigError(
            f"{order}, so its canvas is at most its window of {config.window}x{config.window} "
            f"codes; found {rows}x{columns}. Choose a smaller canvas, or a prior trained in the "
            f"order {ROW_MAJOR!r}."
        )
    if flush_every_rows is not None:
        raise ConfigError(
            f"{order}, so rows are not finished one after another; leave flush_every_rows out."
        )


def parallel_rows_for(device: torch.device, sequences: int, grid: Grid, max_caches: int) -> int:
    """How many rows to sample in parallel, with `sequences` in each and at most `max_caches`."""
    # The caches between a row and the next one are about as many as windows in a window's width,
    # except at stride 1. With more rows than those caches allow, windows would be read again.
    caches_per_row = 1 if grid.stride == 1 else -(-grid.window // grid.stride)
    wanted = SEQUENCES_AT_ONCE.get(device.type, 1) // sequences
    return max(1, min(wanted, max_caches // caches_per_row))


class Canvas:
    """The codes sampled so far: what is read of them for a cell, and where new codes are stored."""

    def __init__(
        self,
        decoder: Decoder | SnailDecoder,
        prefix: Prefix,
        settings: SamplingSettings,
        shape: tuple[int, int, int],
        forced: Tensor | None,
    ) -> None:
        (batch, rows, columns), size = shape, decoder.config.window
        self._decoder, self._prefix, self._settings = decoder, prefix, settings
        self.codes = torch.full(shape, -1, device=decoder.device)
        self.log_probabilities = torch.zeros(shape, device=decoder.device)
        self.known: Tensor | None = None  # (B, rows, columns)
        if forced is not None:
            self.codes[:] = forced
            self.known = self.codes >= 0
        self._window_shape = min(size, rows), min(size, columns)
        self._positions = decoder.positions(*self._window_shape)
        order = decoder.token_order(*self._window_shape)
        self._order_indices = None if order is None else order.cells
        self.order: list[int] | None = None if order is None else order.cells.tolist()
        """raster indices of the window's cells in the prior's order; None for raster order"""
        self._copies = 2 if settings.guides else 1
        self.sequences = batch * self._copies
        # The window's last code is never read.
        self._cache_size = self.sequences, len(self._positions) - 1
        self.cache_bytes = decoder.cache_bytes(*self._cache_size)

    def new_cache(self) -> Cache:
        """An empty cache for one window of all sequences."""
        return self._decoder.new_cache(*self._cache_size)

    def request(self, cell: tuple[int, int], window: Window, cache: Cache) -> Request[Any]:
        """The tokens before a cell in its window that are not in the cache yet."""
        codes = self.codes[:, *window.slices()].flatten(1)
        if self._order_indices is not None:
            codes = codes[:, self._order_indices]
        before = codes[:, : self.num_before(cell, window)]
        before = before.repeat(self._copies, 1)
        length = self._decoder.prefix_length
        end = length + before.shape[1]
        if cache.length:  # then it holds the condition at least
            tokens = before[:, cache.length - length :]
        else:
            tokens = torch.cat([self._prefix(window), before], dim=1)
        return Request(tokens, self._positions[cache.length : end], cache, self._window_shape)

    def num_before(self, cell: tuple[int, int], window: Window) -> int:
        """How many cells of the window precede this one in the prior's order."""
        offset = window.offset_of(*cell)
        return offset if self.order is None else self.order.index(offset)

    def draw(
        self,
        cells: Sequence[tuple[int, int]],
        windows: Sequence[Window],
        features: Tensor,
        uniforms: Tensor,
    ) -> None:
        """Draw R cells after features (R, P, width) with uniforms (R, B) and store them."""
        model, scale = self._decoder.model, None
        if self._settings.guides:
            scales = [
                self._settings.guidance_at(
                    self.num_before(cell, window) / (window.rows * window.columns)
                )
                for cell, window in zip(cells, windows, strict=True)
            ]
            scale = torch.tensor(scales, device=features.device, dtype=logits_dtype(model))[:, None]
        features = features.transpose(0, 1).contiguous()
        codes, logs = draw_codes(model, features, uniforms.T, self._settings, scale)
        rows, columns = zip(*cells, strict=True)
        if self.known is not None:
            known = self.known[:, rows, columns]
            codes, logs = codes.where(~known, self.codes[:, rows, columns]), logs.where(~known, 0)
        self.codes[:, rows, columns] = codes
        self.log_probabilities[:, rows, columns] = logs
