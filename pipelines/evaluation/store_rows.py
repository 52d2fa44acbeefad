"""The current rows of a code store, read shard by shard, a bounded number of codes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.store import CodeStore

CODES_AT_ONCE = 1 << 21

Ints = NDArray[np.int64]


class RowBatch(NamedTuple):
    """Some rows of one shard."""

    grid: str
    task: int  # the shard's number within the grid
    first: int  # position of the first row among all current rows
    rows: Ints  # (n,), their numbers within the grid
    labels: Ints  # (n,), -1 for none
    codes: Ints  # (n, h * w)


def row_batches(store: CodeStore) -> Iterator[RowBatch]:
    """Every current row, grid by grid, in the order of rows."""
    position = 0
    for grid in store.grids:
        rows = store.ok_rows(grid)
        tasks = rows // store.rows_per_task
        for task in np.unique(tasks):
            start, end = np.searchsorted(tasks, [task, task + 1])
            step = max(1, CODES_AT_ONCE // max(1, _cells(grid)))
            for first in range(start, end, step):
                chosen = rows[first : min(first + step, end)]
                codes = store.read(grid, chosen).astype(np.int64).reshape(len(chosen), -1)
                labels = store.labels(grid, chosen).astype(np.int64)
                yield RowBatch(grid, int(task), position, chosen, labels, codes)
                position += len(chosen)


def shard_sizes(store: CodeStore) -> Ints:
    """The numbers of current rows of the shards that row_batches goes through, in its order."""
    found = [
        np.unique(store.ok_rows(grid) // store.rows_per_task, return_counts=True)[1]
        for grid in store.grids
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


class RowLines:
    """What the index has of the current rows, by their position in row_batches' order."""

    def __init__(self, store: CodeStore) -> None:
        self.store = store
        self.grids = list(store.grids)
        counts = [store.grids[grid] for grid in self.grids]
        self._starts = np.cumsum([0, *counts])
        lines = [_current_lines(store, grid) for grid in self.grids]
        table = pa.concat_tables(lines) if lines else store.index.slice(0, 0)
        self.keys: pa.ChunkedArray = table["key"]
        self.rows: Ints = table["row"].to_numpy()
        self.checksums: NDArray[Any] = table["checksum"].to_numpy()
        self.grid_numbers: Ints = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, position: int) -> str:
        """The key of the row at a position."""
        return str(self.keys[int(position)].as_py())

    def read(self, positions: Ints) -> list[Ints]:
        """The codes (h * w,) of the rows at positions, in their order."""
        found: list[Ints] = [np.zeros(0, np.int64)] * len(positions)
        grids = self.grid_numbers[positions]
        for number in np.unique(grids):
            places = np.flatnonzero(grids == number)
            codes = self.store.read(self.grids[number], self.rows[positions[places]])
            for place, row in zip(places, codes, strict=True):
                found[place] = row.astype(np.int64).ravel()
        return found


def _current_lines(store: CodeStore, grid: str) -> pa.Table:
    """The index lines of a grid's current rows, in the order of rows."""
    lines = store.index.filter(pc.equal(store.index["grid"], grid))
    current = np.isin(lines["row"].to_numpy(), store.ok_rows(grid))
    return lines.select(["key", "row", "checksum"]).filter(pa.array(current)).sort_by("row")


def _cells(grid: str) -> int:
    rows, _, columns = grid.partition("x")
    return int(rows) * int(columns)
