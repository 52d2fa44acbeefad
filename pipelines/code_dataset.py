"""A code store as shuffled training batches, in an order that (seed, step) decides alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.config import UserError
from ops.noise import uniforms
from ops.permutation import KeyedPermutation
from pipelines.split import held_out
from pipelines.store import CodeStore


class DatasetError(UserError):
    """A store that cannot be trained on as asked."""


class Rows(NamedTuple):
    """Addresses of rows in a store, in index order."""

    grid: np.ndarray[Any, Any]  # (N,) position in CodeDataset.grids
    row: np.ndarray[Any, Any]  # (N,) int64

    def __len__(self) -> int:
        return len(self.row)

    def take(self, positions: np.ndarray[Any, Any]) -> Rows:
        return Rows(self.grid[positions], self.row[positions])


class CodeDataset:
    """Windows of `window` x `window` codes cut from the rows of a store.

    Each row comes once an epoch, in the order of a keyed permutation; where its grid is larger
    than the window, the window's place in it is drawn by (seed, position) too. `train_batch(step)`
    is a pure function, so resuming needs the step alone. Keys held out (see split.held_out) never
    train; all views of an image share its key's side. Raises DatasetError where nothing is left
    to train on (unless `may_be_all_held_out`), or a grid is smaller than the window.
    """

    def __init__(
        self,
        store: CodeStore,
        *,
        window: int,
        batch_size: int,
        seed: int = 0,
        held_out_share: float = 0.0,
        may_be_all_held_out: bool = False,
    ) -> None:
        self.store, self.window, self.batch_size, self.seed = store, window, batch_size, seed
        self.grids = sorted(store.grids)
        for grid in self.grids:
            if min(map(int, grid.split("x"))) < window:
                raise DatasetError(
                    f"{store.path} has grids of {grid} codes, smaller than the prior's window of "
                    f"{window}x{window}. Encode larger images, or train with a smaller --window."
                )
        self.train_rows, self.held_out_rows = self._split(held_out_share)
        if not len(self.train_rows) and not may_be_all_held_out:
            raise DatasetError(f"{store.path} has no row to train on. Did encoding succeed?")

    def _split(self, share: float) -> tuple[Rows, Rows]:
        """Rows to train on and rows held out."""
        sides: dict[str, bool] = {}
        grids, rows, held = [], [], []
        for number, grid in enumerate(self.grids):
            keys = _keys_of(self.store, grid)
            for row in self.store.ok_rows(grid):
                key = keys[row]
                sides.setdefault(key, held_out(key, share))
                grids.append(number)
                rows.append(row)
                held.append(sides[key])
        everything = Rows(np.array(grids, np.int64), np.array(rows, np.int64))
        mask = np.array(held, bool)
        return everything.take(np.flatnonzero(~mask)), everything.take(np.flatnonzero(mask))

    @property
    def steps_per_epoch(self) -> float:
        return len(self.train_rows) / self.batch_size

    def train_batch(self, step: int) -> dict[str, Tensor]:
        """{"codes": (B, window, window) int64, "label": (B,) int64, -1 for none} of one step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, len(self.train_rows))
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            shuffle = KeyedPermutation(len(self.train_rows), self.seed, int(epoch))
            chosen[inside] = shuffle(places[inside])
        draws = uniforms(self.seed, [int(p) for p in positions], 1, 2)[:, 0]
        return self._gather(self.train_rows.take(chosen), draws)

    def held_out_batches(self, most: int = 64) -> list[dict[str, Tensor]]:
        """The middle windows of up to `most` held-out rows, spread evenly over them."""
        count = min(most, len(self.held_out_rows))
        if not count:
            return []
        rows = self.held_out_rows.take(np.arange(count) * len(self.held_out_rows) // count)
        draws = np.full((count, 2), 0.5)
        return [
            self._gather(rows.take(part), draws[part])
            for part in np.array_split(np.arange(count), -(-count // self.batch_size))
        ]

    def _gather(self, rows: Rows, draws: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Codes and labels of rows (B,), each cut where its draws (B, 2) in [0, 1) say."""
        codes = np.empty((len(rows), self.window, self.window), np.int64)
        labels = np.empty(len(rows), np.int64)
        for number in np.unique(rows.grid):
            chosen = np.flatnonzero(rows.grid == number)
            grid = self.grids[number]
            whole = self.store.read(grid, rows.row[chosen])
            labels[chosen] = self.store.labels(grid, rows.row[chosen])
            codes[chosen] = cut_windows(whole, self.window, draws[chosen])
        return {"codes": torch.from_numpy(codes), "label": torch.from_numpy(labels)}


def cut_windows(
    codes: np.ndarray[Any, Any], window: int, draws: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Windows (n, window, window) of codes (n, h, w) placed by draws (n, 2) in [0, 1)."""
    spare = np.array(codes.shape[1:]) - window + 1
    tops, lefts = (draws * spare).astype(np.int64).T
    steps = np.arange(window)
    rows = (tops[:, None] + steps)[:, :, None]
    columns = (lefts[:, None] + steps)[:, None, :]
    return codes[np.arange(len(codes))[:, None, None], rows, columns]


def _keys_of(store: CodeStore, grid: str) -> dict[int, str]:
    grids: Sequence[str] = store.index["grid"].to_pylist()
    rows: Sequence[int] = store.index["row"].to_pylist()
    keys: Sequence[str] = store.index["key"].to_pylist()
    return {row: key for g, row, key in zip(grids, rows, keys, strict=True) if g == grid}
