"""Where windows and tiles lie on a grid. Integers only: no model, no tensor.

A window is what a prior reads at once; a tile is what a tokenizer encodes or decodes at once.
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
        """The raster number, within the window, of the grid's cell (row, column)."""
        return (row - self.row) * self.columns + column - self.column

    def slices(self) -> tuple[slice, slice]:
        """What cuts the window out of an array whose last two axes are rows and columns."""
        return (
            slice(self.row, self.row + self.rows),
            slice(self.column, self.column + self.columns),
        )


def window_start(place: int, size: int, window: int, stride: int = 1) -> int:
    """First row (or column) of the window in which row (or column) `place` is drawn.

    With stride 1 the paper's rule: the cell lies in the window's middle, or nearer its edge where
    the window would leave the grid. Larger strides move the start back to a multiple of `stride`.
    """
    middle = (place - window // 2) // stride * stride
    return max(0, min(middle, size - window))


def check_stride(stride: int, window: int) -> None:
    """Raise ConfigError unless every cell lies inside its window of the given stride."""
    if not 1 <= stride <= window - window // 2:
        raise ConfigError(
            f"stride must be from 1 to {window - window // 2} for a window of {window}, "
            f"found {stride}."
        )


def window_of(
    row: int, column: int, rows: int, columns: int, window: int, stride: int = 1
) -> Window:
    """The window in which cell (row, column) of a grid of rows x columns is drawn.

    Holds the cell. Smaller than window x window where the grid is. Drawing cells in raster order,
    all the window's cells that come before this one are drawn before it.
    """
    return Window(
        window_start(row, rows, window, stride),
        window_start(column, columns, window, stride),
        min(window, rows),
        min(window, columns),
    )


def raster(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """The cells (row, column), row by row."""
    return ((row, column) for row in range(rows) for column in range(columns))


NOWHERE = (-1, 0)


def staggered_rows(
    rows: int, columns: int, lag: int, at_once: int
) -> Iterator[list[tuple[int, int]]]:
    """The cells of a grid in steps of one cell in each of `at_once` rows; NOWHERE fills up.

    Each row starts `lag` steps or more after the one above it, and a row's cells come one a step.
    At most `at_once` rows, one below the other, are under way together.
    """
    period = max(columns, at_once * lag)  # after it a place among the rows is free again
    starts = [row // at_once * period + row % at_once * lag for row in range(rows)]
    first = 0  # the first row that is not done
    for step in range(starts[-1] + columns):
        cells = [NOWHERE] * at_once
        while starts[first] + columns <= step:
            first += 1
        for row in range(first, min(first + at_once, rows)):
            if step >= starts[row]:
                cells[row % at_once] = (row, step - starts[row])
        yield cells


class Grid(NamedTuple):
    """A grid of cells and the windows in which they are drawn: see window_of."""

    rows: int
    columns: int
    window: int
    stride: int

    def window_of(self, row: int, column: int) -> Window:
        """The window in which a cell is drawn."""
        return window_of(row, column, *self)


class Wavefront:
    """An order of drawing a grid's cells in which many may be drawn at once.

    Iterating gives lists of at most `lanes` cells, each of another row. All the cells that come
    before one of them in its window are in earlier lists or `known`; cells that are known are in
    none. A row's cells come from left to right, those of a list from top to bottom. Each row
    follows the one above as closely as windows allow: at the left border a whole window behind.
    With one lane this is the raster. With `rest`, each row that is a multiple of it begins when all
    above are done.
    """

    def __init__(
        self,
        grid: Grid,
        parallel_rows: int,
        known: Sequence[Sequence[bool]] | None = None,
        flush_every_rows: int | None = None,
    ) -> None:
        self.first = 0  # the first row of which cells are left
        self._grid, self._parallel_rows, self._known, self._flush_every_rows = (
            grid,
            parallel_rows,
            known,
            flush_every_rows,
        )
        self._drawn: deque[int] = deque()  # how many cells of row first + k are drawn

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        while self._advance():
            cells = [
                (self.first + k, self._drawn[k])
                for k in range(len(self._drawn))
                if self._is_ready(k)
            ]
            yield cells
            for row, _ in cells:
                self._drawn[row - self.first] += 1

    def wait(self, window: Window) -> int | None:
        """About how many cells a row draws before it comes to `window`; None if none will come.

        Of the rows that draw in it the nearest counts, and one that has not begun is the grid's
        width further away.
        """
        rows, columns, size, stride = self._grid
        waits = []
        for k, drawn in enumerate([*self._drawn, 0]):
            row = self.first + k
            if row < rows and window_start(row, rows, size, stride) == window.row:
                away = window.column - window_start(drawn, columns, size, stride)
                if drawn < columns and away >= 0:
                    waits.append(away if k < len(self._drawn) else away + columns)
        return min(waits, default=None)

    def _advance(self) -> bool:
        """Pass what is known, leave rows that are drawn, begin others; whether cells are left."""
        while True:
            self._pass_known()
            if self._drawn and self._drawn[0] == self._grid.columns:
                self._drawn.popleft()
                self.first += 1
            elif self._may_begin():
                self._drawn.append(0)
            else:
                return bool(self._drawn)

    def _may_begin(self) -> bool:
        """Whether the next row may be begun beside those that are."""
        row = self.first + len(self._drawn)
        if self._flush_every_rows is not None and row % self._flush_every_rows == 0 and self._drawn:
            return False
        return len(self._drawn) < self._parallel_rows and row < self._grid.rows

    def _pass_known(self) -> None:
        if self._known is not None:
            for k in range(len(self._drawn)):
                while self._is_ready(k) and self._known[self.first + k][self._drawn[k]]:
                    self._drawn[k] += 1

    def _is_ready(self, k: int) -> bool:
        """Whether all is drawn that lies before the next cell of row first + k in its window.

        The row above is asked alone: it had to wait for the one above it likewise.
        """
        if self._drawn[k] == self._grid.columns:
            return False
        window = self._grid.window_of(self.first + k, self._drawn[k])
        return k == 0 or self._drawn[k - 1] >= window.column + window.columns


class InSequence:
    """An order of drawing a grid that is one window, cell after cell; as a Wavefront is."""

    first = 0  # until the last cell is drawn, cells may be left in any row

    def __init__(
        self, columns: int, order: Sequence[int], known: Sequence[Sequence[bool]] | None = None
    ) -> None:
        """`order` are the cells' raster numbers; cells that are `known` are left out."""
        self._columns, self._order, self._known = columns, order, known

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in self._order:
            row, column = divmod(number, self._columns)
            if self._known is None or not self._known[row][column]:
                yield [(row, column)]

    def wait(self, window: Window) -> int | None:
        """All the next cells are drawn in the one window there is."""
        return 0


class Tile(NamedTuple):
    """A part of a grid, and the larger part that must be seen to make it."""

    inner: Window  # the cells this tile makes; the tiles' inner parts cover the grid once
    outer: Window  # with up to `halo` more cells on each side, cut at the grid's edges

    def inner_in_outer(self) -> Window:
        """The inner part, counted from the outer part's corner."""
        return Window(
            self.inner.row - self.outer.row,
            self.inner.column - self.outer.column,
            self.inner.rows,
            self.inner.columns,
        )


def tiles(rows: int, columns: int, tile: int, halo: int) -> Iterator[Tile]:
    """Tiles of at most tile x tile cells that cover a grid of rows x columns once, in raster order.

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
