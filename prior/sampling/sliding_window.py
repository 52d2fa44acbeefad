"""Drawing grids of codes of any size, cell by cell, through windows that slide over the canvas.

One loop serves all: a grid no larger than the window is one window that never moves. Each cell is
drawn from its whole prefix in its window, the condition and the codes before it, and no cell is
read before it is drawn. Every window keeps a KV cache; when a row comes back to a window, it first
reads the codes that were drawn beside and above it since. Rows are drawn side by side, each a
window behind the one above (ops.windows.Wavefront), so that the cells of several rows, and of all
images, are one forward.

A prior that foretells its window in another order than row by row (prior.orderings) has one window
that must hold the whole canvas, and draws one cell of each image in a forward.

Which cells share a forward follows from the canvas, its known cells, the batch and the device type
alone. So every forward of a sample has the same rows in the same places, whoever its neighbours in
the batch are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ops.config import ConfigError
from ops.windows import Grid, InSequence, Wavefront, Window, check_stride
from prior.conditions import Prefix
from prior.models import GPTConfig, SnailConfig
from prior.orderings import ROW_MAJOR
from prior.sampling.decoder import Cache, Decoder, Run
from prior.sampling.distributions import Draw, SamplingSettings, draw, guided
from prior.sampling.options import DEFAULT_CACHE_MEMORY
from prior.sampling.snail_decoder import SnailDecoder
from prior.sampling.window_caches import WindowCaches

# Sequences that are read together, at most: beyond, a forward takes as many times longer.
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
) -> Draw:
    """Codes of `shape` (B, rows, columns), one drawn with each of uniforms(row) (B, columns).

    With stride 1, the paper's rule: each cell is drawn in the middle of a window of its own, or
    nearer its edge at the canvas's border, where cells share windows. With stride s, windows start
    at multiples of s, and one window draws up to s x s cells; at most config.window / 2.

    prefix(window) is (P, C) with P = B; where settings.guides, P = 2B, and the second B tell
    nothing. A condition that is a grid gives each window its own part: see grid_prefix. `forced`
    (rows, columns), or one each (B, rows, columns), holds known codes, and -1 where one is to be
    drawn: cells that all know are not read for, others are drawn and put where needed. on_cells(n,
    codes) is called with the codes so far, -1 where none is drawn, whenever n more cells are.
    `cache_memory` bounds the bytes of caches, but there is one at least. At each row that is a
    multiple of `rest`, all above is finished before and nothing but codes is carried on: with the
    rows above it forced, the rest comes out bit for bit as it did.
    Raises ConfigError when the stride does not suit the window, or the canvas the prior's order.
    """
    _, rows, columns = shape
    grid = Grid(rows, columns, decoder.config.window, stride)
    check_stride(stride, grid.window)
    check_ordering(decoder.config, rows, columns, flush_every_rows)
    canvas = Canvas(decoder, prefix, settings, shape, forced)
    most = max(1, cache_memory // canvas.cache_bytes)
    parallel_rows = parallel_rows_for(decoder.device, canvas.sequences, grid, most)
    known = None if canvas.known is None else canvas.known.all(0)
    passed = None if known is None else known.tolist()
    front: Wavefront | InSequence
    if canvas.order is None:
        front = Wavefront(grid, parallel_rows, passed, flush_every_rows)
    else:
        front = InSequence(columns, canvas.order, passed)
    caches = WindowCaches(canvas.new_cache, most, front)
    numbers: dict[int, Tensor] = {}
    if on_cells is not None and known is not None:
        on_cells(int(known.sum()), canvas.codes)
    for cells in front:
        if (
            flush_every_rows is not None
            and cells[0][0] % flush_every_rows == 0
            and cells[0][1] == 0
        ):
            caches.forget()
        numbers |= {row: uniforms(row) for row, _ in cells if row not in numbers}
        windows = [grid.window_of(*cell) for cell in cells]
        runs = list(map(canvas.run, cells, windows, caches.enter(windows)))
        here = torch.stack([numbers[row][:, column] for row, column in cells])
        canvas.draw(cells, windows, decoder.read(runs), here)
        for row in [row for row in numbers if row < front.first]:
            del numbers[row]
        if on_cells is not None:
            on_cells(len(cells), canvas.codes)
    return Draw(canvas.codes, canvas.log_probabilities)


def check_ordering(
    config: GPTConfig | SnailConfig, rows: int, columns: int, flush_every_rows: int | None = None
) -> None:
    """Raise ConfigError for what a prior cannot paint in its order: row by row anything.

    A window that slides, and rows that are finished one after another, need all above to be there.
    """
    if isinstance(config, SnailConfig) or config.ordering == ROW_MAJOR:
        return
    order = f"This prior foretells codes in the order {config.ordering!r}"
    if max(rows, columns) > config.window:
        raise ConfigError(
            f"{order}, and so paints no canvas beyond its window of {config.window}x"
            f"{config.window} codes; found {rows}x{columns}. Paint a smaller one, or train a prior "
            f"by {ROW_MAJOR}."
        )
    if flush_every_rows is not None:
        raise ConfigError(f"{order}, which finishes no rows to rest after; leave rest out.")


def parallel_rows_for(device: torch.device, sequences: int, grid: Grid, most_caches: int) -> int:
    """How many rows are drawn side by side, with so many sequences in each, and room for so many
    caches."""
    # Behind each row a window's width of windows waits for the next one, unless bands are one row
    # high: more rows than can keep those would read whole windows again and again.
    caches_a_row = 1 if grid.stride == 1 else -(-grid.window // grid.stride)
    wanted = SEQUENCES_AT_ONCE.get(device.type, 1) // sequences
    return max(1, min(wanted, most_caches // caches_a_row))


class Canvas:
    """Codes that are being drawn, and how they are read and put."""

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
        way = decoder.token_order(*self._window_shape)
        self._sequence = None if way is None else way.cells
        self.order: list[int] | None = None if way is None else way.cells.tolist()
        """raster numbers of a window's cells as they are read; None row by row"""
        self._copies = 2 if settings.guides else 1
        self.sequences = batch * self._copies
        # The window's last code is never read: nothing in the window comes after it.
        self._cache_size = self.sequences, len(self._positions) - 1
        self.cache_bytes = decoder.cache_bytes(*self._cache_size)

    def new_cache(self) -> Cache:
        """An empty cache for one window of all sequences."""
        return self._decoder.new_cache(*self._cache_size)

    def run(self, cell: tuple[int, int], window: Window, cache: Cache) -> Run[Any]:
        """What is to be read to foretell a cell: all that lies before it and is not yet cached."""
        codes = self.codes[:, *window.slices()].flatten(1)
        if self._sequence is not None:
            codes = codes[:, self._sequence]
        before = codes[:, : self.number_of(cell, window)]
        before = before.repeat(self._copies, 1)
        length = self._decoder.prefix_length
        end = length + before.shape[1]
        if cache.length:  # then it holds the condition at least
            tokens = before[:, cache.length - length :]
        else:
            tokens = torch.cat([self._prefix(window), before], dim=1)
        return Run(tokens, self._positions[cache.length : end], cache, self._window_shape)

    def number_of(self, cell: tuple[int, int], window: Window) -> int:
        """How many cells of the window are foretold before this one."""
        place = window.offset_of(*cell)
        return place if self.order is None else self.order.index(place)

    def draw(
        self,
        cells: Sequence[tuple[int, int]],
        windows: Sequence[Window],
        logits: Tensor,
        uniforms: Tensor,
    ) -> None:
        """Draw R cells from logits (R, P, K) by uniforms (R, B), and put them down."""
        if self._settings.guides:
            conditional, unconditional = logits.chunk(2, dim=1)
            scales = [
                self._settings.guidance_at(
                    self.number_of(cell, window) / (window.rows * window.columns)
                )
                for cell, window in zip(cells, windows, strict=True)
            ]
            logits = guided(conditional, unconditional, logits.new_tensor(scales)[:, None, None])
        drawn = draw(logits.flatten(0, 1), uniforms.flatten(), self._settings)
        rows, columns = zip(*cells, strict=True)
        codes, logs = (part.view_as(uniforms).T for part in drawn)
        if self.known is not None:
            known = self.known[:, rows, columns]
            codes, logs = codes.where(~known, self.codes[:, rows, columns]), logs.where(~known, 0)
        self.codes[:, rows, columns] = codes
        self.log_probabilities[:, rows, columns] = logs
