"""Positions of windows and tiles on a grid, and orders of sampling its cells. Integers only.

A window holds the codes that a prior sees at once; a tile holds the codes that a tokenizer encodes
or decodes at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ops.config import ConfigError


class Window(NamedTuple):
    """A rectangle of cells of a grid."""

    row: int
    column: int
    rows: int
    columns: int

    def offset_of(self, row: int, column: int) -> int:
        """Raster index within the window of the grid's cell (row, column)."""
        return (row - self.row) * self.columns + column - self.column

    def slices(self) -> tuple[slice, slice]:
        """Slices that select the window from an array's last two axes, rows and columns."""
        return (
            slice(self.row, self.row + self.rows),
            slice(self.column, self.column + self.columns),
        )


def window_start(position: int, size: int, window: int, stride: int = 1) -> int:
    """First row (or column) of the window in which row (or column) `position` is sampled.

    With stride 1, the sliding window of Esser et al. (2021, section 3.3): the cell is in the middle
    of its window, or nearer the window's edge where the window would leave the grid. A larger
    stride rounds the start down to a multiple of `stride`.
    """
    start = (position - window // 2) // stride * stride
    return max(0, min(start, size - window))


def check_stride(stride: int, window: int) -> None:
    """Raise ConfigError unless every cell lies inside its window at this stride."""
    if not 1 <= stride <= window - window // 2:
        raise ConfigError(
            f"stride must be from 1 to {window - window // 2} for a window of {window}, "
            f"found {stride}."
        )


def window_of(
    row: int, column: int, rows: int, columns: int, window: int, stride: int = 1
) -> Window:
    """The window in which cell (row, column) of a grid of rows x columns is sampled.

    Its sides are `window`, or the grid's where those are smaller. In raster order, every cell of
    the window that precedes this one is sampled before it.
    """
    return Window(
        window_start(row, rows, window, stride),
        window_start(column, columns, window, stride),
        min(window, rows),
        min(window, columns),
    )


def raster(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """All cells (row, column) in raster order."""
    return ((row, column) for row in range(rows) for column in range(columns))


NO_CELL = (-1, 0)


def staggered_rows(
    rows: int, columns: int, lag: int, parallel_rows: int
) -> Iterator[list[tuple[int, int]]]:
    """Lists of `parallel_rows` cells, one of each row in progress; NO_CELL where there is none.

    A row starts `lag` steps or more after the row above and then advances by one cell a step.
    Entry i of a list belongs to the row in progress whose number is i modulo `parallel_rows`.
    """
    period = max(columns, parallel_rows * lag)  # steps until an entry is free for its next row
    starts = [row // parallel_rows * period + row % parallel_rows * lag for row in range(rows)]
    first = 0  # first unfinished row
    for step in range(starts[-1] + columns):
        cells = [NO_CELL] * parallel_rows
        while starts[first] + columns <= step:
            first += 1
        for row in range(first, min(first + parallel_rows, rows)):
            if step >= starts[row]:
                cells[row % parallel_rows] = (row, step - starts[row])
        yield cells


class Grid(NamedTuple):
    """A grid of cells and the windows in which they are sampled: see window_of."""

    rows: int
    columns: int
    window: int
    stride: int

    def window_of(self, row: int, column: int) -> Window:
        """The window in which a cell is sampled."""
        return window_of(row, column, *self)


class Wavefront:
    """An order of sampling a grid in which cells of several rows are independent of each other.

    Iterating yields lists of at most `parallel_rows` cells in different rows, from top to bottom.
    When a list is yielded, all cells that precede one of its cells in that cell's window are in
    earlier lists or `known`. Known cells are in no list. Each row follows the one above as closely
    as the windows allow: at the left border a whole window behind. With one parallel row the order
    is raster order. With `flush_every_rows`, a row whose number is a multiple of it starts only
    when all rows above are done.
    """

    def __init__(
        self,
        grid: Grid,
        parallel_rows: int,
        known: Sequence[Sequence[bool]] | None = None,
        flush_every_rows: int | None = None,
    ) -> None:
        self.first_open_row = 0
        self._grid, self._parallel_rows = grid, parallel_rows
        self._known, self._flush_every_rows = known, flush_every_rows
        self._num_done: deque[int] = deque()  # finished cells of row first_open_row + k

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        while self._advance():
            cells = [
                (self.first_open_row + k, self._num_done[k])
                for k in range(len(self._num_done))
                if self._is_ready(k)
            ]
            yield cells
            for row, _ in cells:
                self._num_done[row - self.first_open_row] += 1

    def cells_until(self, window: Window) -> int | None:
        """About how many cells a row samples before it enters `window`; None if no row will.

        The nearest row counts. A row that has not started counts as the grid's width further away.
        """
        rows, columns, size, stride = self._grid
        distances = []
        for k, done in enumerate([*self._num_done, 0]):
            row = self.first_open_row + k
            if row < rows and window_start(row, rows, size, stride) == window.row:
                distance = window.column - window_start(done, columns, size, stride)
                if done < columns and distance >= 0:
                    started = k < len(self._num_done)
                    distances.append(distance if started else distance + columns)
        return min(distances, default=None)

    def _advance(self) -> bool:
        """Skip known cells, drop finished rows, start new ones; returns whether cells are left."""
        while True:
            self._skip_known()
            if self._num_done and self._num_done[0] == self._grid.columns:
                self._num_done.popleft()
                self.first_open_row += 1
            elif self._can_start_row():
                self._num_done.append(0)
            else:
                return bool(self._num_done)

    def _can_start_row(self) -> bool:
        """Whether the next row may join those in progress."""
        row, flush = self.first_open_row + len(self._num_done), self._flush_every_rows
        if flush is not None and row % flush == 0 and self._num_done:
            return False
        return len(self._num_done) < self._parallel_rows and row < self._grid.rows

    def _skip_known(self) -> None:
        if self._known is not None:
            for k in range(len(self._num_done)):
                while self._is_ready(k) and self._known[self.first_open_row + k][self._num_done[k]]:
                    self._num_done[k] += 1

    def _is_ready(self, k: int) -> bool:
        """Whether all cells that the next cell of row first_open_row + k depends on are done.

        Comparing with the row above is enough: that row depended likewise on the one above it.
        """
        if self._num_done[k] == self._grid.columns:
            return False
        window = self._grid.window_of(self.first_open_row + k, self._num_done[k])
        return k == 0 or self._num_done[k - 1] >= window.column + window.columns


class FixedOrder:
    """A given order of sampling a grid that fits one window, a cell at a time, like a Wavefront."""

    first_open_row = 0  # until the last cell is sampled, any row may have open cells

    def __init__(
        self, columns: int, order: Sequence[int], known: Sequence[Sequence[bool]] | None = None
    ) -> None:
        """`order` holds the cells' raster indices; cells that are `known` are left out."""
        self._columns, self._order, self._known = columns, order, known

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in self._order:
            row, column = divmod(number, self._columns)
            if self._known is None or not self._known[row][column]:
                yield [(row, column)]

    def cells_until(self, window: Window) -> int | None:
        """0: there is one window, and every cell is sampled in it."""
        return 0


class Tile(NamedTuple):
    """The part of a grid that one pass computes, and the larger part that the pass reads."""

    inner: Window  # cells computed by this tile; the inner parts of all tiles partition the grid
    outer: Window  # `inner` with up to `halo` more cells on each side, clipped to the grid

    def inner_in_outer(self) -> Window:
        """The inner part in coordinates relative to the outer part."""
        return Window(
            self.inner.row - self.outer.row,
            self.inner.column - self.outer.column,
            self.inner.rows,
            self.inner.columns,
        )


def tiles(rows: int, columns: int, tile: int, halo: int) -> Iterator[Tile]:
    """Tiles of at most tile x tile cells that partition a grid of rows x columns, in raster order.

    Raises ConfigError when `tile` is below 1 or `halo` below 0.
    """
    if tile < 1 or halo < 0:
        raise ConfigError(f"A tile must be 1 or more and a halo 0 or more, found {tile}, {halo}.")
    for row in range(0, rows, tile):
        for column in range(0, columns, tile):
            inner = Window(row, column, min(tile, rows - row), min(tile, columns - column))
            top, left = max(0, row - halo), max(0, column - halo)
            bottom = min(rows, row + inner.rows + halo)
            right = min(columns, column + inner.columns + halo)
            yield Tile(inner, Window(top, left, bottom - top, right - left))
