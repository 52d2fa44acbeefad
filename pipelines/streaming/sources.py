"""The images of a code store: their rows, views, labels, and which of them are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ops.config import UserError
from ops.grouping import by_group
from pipelines.inputs import which_held_out
from pipelines.store import CodeStore, code_dtype, grid_shape
from pipelines.streaming.tracks import rows_with_all

IntArray = NDArray[np.int64]
KEYS_AT_ONCE = 65_536  # keys that exist as Python objects at a time


class DatasetError(UserError):
    """A store that cannot be trained on as asked."""


class CodeSource:
    """The usable rows of a store, grouped as images: rows of one key are views of one image.

    Usable rows are numbered by line, from 0: views of an image are neighbours, and images are in
    index order of their first views, so shard by shard. With `every_view` each row counts as an
    image; whether it is held out still depends on its key. Rows without one of `tracks` are not
    usable.
    """

    def __init__(
        self,
        store: CodeStore,
        held_out_share: float,
        every_view: bool,
        tracks: Mapping[str, CodeStore] | None = None,
    ) -> None:
        self.store, self.tracks = store, dict(tracks or {})
        self.grids = sorted(store.grids)
        per_grid = [rows_with_all(store, grid, self.tracks) for grid in self.grids]
        nothing = np.empty(0, np.int64)
        rows = np.concatenate([nothing, *per_grid])
        grids = np.repeat(np.arange(len(per_grid), dtype=np.int32), [len(r) for r in per_grid])
        image_of_row, held = self._split(per_grid, held_out_share)
        if every_view:
            image_of_row, held = np.arange(len(rows)), held[image_of_row]
        order = np.argsort(image_of_row, kind="stable")
        #: For each line (N,): the position in `grids`, and the row number in that grid.
        self.grid, self.row = grids[order], rows[order]
        self.views = np.bincount(image_of_row, minlength=len(held))
        self.first_line = np.cumsum(self.views) - self.views
        #: Image numbers to train on and held out, ascending.
        self.train, self.held_out = np.flatnonzero(~held), np.flatnonzero(held)

    def _split(self, rows: list[IntArray], share: float) -> tuple[IntArray, NDArray[np.bool_]]:
        """The image of each row (N,), grid after grid, and whether each image (M,) is held out."""
        keys = [_keys_of(self.store, grid, r) for grid, r in zip(self.grids, rows, strict=True)]
        names = pa.chunked_array(keys, pa.string()).combine_chunks().dictionary_encode()
        unique = names.dictionary.cast(pa.binary())
        held = [
            which_held_out(unique.slice(first, KEYS_AT_ONCE).to_pylist(), share)
            for first in range(0, len(unique), KEYS_AT_ONCE)
        ]
        images = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return images, np.concatenate([np.empty(0, bool), *held])

    @property
    def shard_sizes(self) -> IntArray:
        """Numbers (S,) of images to train on per shard that has any, in the order of `train`."""
        first = self.first_line[self.train]
        tasks = self.row[first] // self.store.rows_per_task
        shards = self.grid[first] * (tasks.max(initial=0) + 1) + tasks
        return np.unique(shards, return_counts=True)[1]

    def shards_within(self, memory: int | None, num_stores: int = 1) -> int | None:
        """How many shards fit into `memory` bytes, at least one; None for no bound.

        Of a compressed store, no more than it keeps decoded, or shards would be decoded repeatedly.
        Of one in an object store, no more than a third of the cache that it shares with
        `num_stores`: the next ones are copied there while these are read.
        """
        cached = self.store.cached_bytes
        if cached is not None:
            cached //= 3 * num_stores * (1 + len(self.tracks))
        bounds = [b for b in (memory, self.store.decoded_bytes, cached) if b is not None]
        if not bounds:
            return None
        codes = max(int(np.prod(grid_shape(grid))) for grid in self.grids)
        dtype = code_dtype(self.store.provenance["image"]["codebook_size"])
        return max(1, min(bounds) // (self.store.rows_per_task * codes * dtype.itemsize))

    def needs_draws(self, window: int) -> bool:
        """Whether some image has several views, or a grid larger than the window."""
        several = len(self.row) > len(self.views)
        return several or any(grid_shape(grid) != (window, window) for grid in self.grids)

    def lines(self, images: IntArray, draws: NDArray[np.float64]) -> IntArray:
        """The lines (n,) of one view of each of `images` (n,), chosen by `draws` (n,) in [0, 1)."""
        return self.first_line[images] + (draws * self.views[images]).astype(np.int64)

    def middle_lines(self, images: IntArray) -> IntArray:
        """The lines (n,) of the middle views: of ten crops, the central one without flip."""
        return self.first_line[images] + (self.views[images] - 1) // 2

    def labels(self, lines: IntArray) -> IntArray:
        """The store's own labels (n,) of the rows at `lines` (n,); -1 for none."""
        return by_group(
            self.grid[lines],
            lambda number, places: self.store.labels(
                self.grids[number], self.row[lines[places]]
            ).astype(np.int64),
        )

    def keys(self, lines: IntArray) -> NDArray[Any]:
        """The keys (n,) of the rows at `lines` (n,), looked up in the whole index."""

        def of_grid(number: int, places: IntArray) -> NDArray[Any]:
            found = _keys_of(self.store, self.grids[number], self.row[lines[places]])
            values: NDArray[Any] = found.to_numpy(zero_copy_only=False)
            return values

        return by_group(self.grid[lines], of_grid)


def window_corners(
    grid: tuple[int, int], window: int, draws: NDArray[np.float64]
) -> tuple[IntArray, IntArray]:
    """First rows and columns, (n,) each, of windows in grids (h, w), by draws (n, 2) in [0, 1)."""
    spare = np.array(grid) - window + 1
    tops, lefts = (draws * spare).astype(np.int64).T
    return tops, lefts


def cut_windows(codes: NDArray[Any], window: int, draws: NDArray[np.float64]) -> NDArray[Any]:
    """Windows (n, window, window) of codes (n, h, w) placed by draws (n, 2) in [0, 1)."""
    tops, lefts = window_corners(codes.shape[1:], window, draws)
    steps = np.arange(window)
    rows = (tops[:, None] + steps)[:, :, None]
    columns = (lefts[:, None] + steps)[:, None, :]
    cropped: NDArray[Any] = codes[np.arange(len(codes))[:, None, None], rows, columns]
    return cropped


def places_of(grid: tuple[int, int], window: int, draws: NDArray[np.float64]) -> IntArray:
    """Places (n, 4) of windows: top row and left column, and the grid's rows and columns.

    Draws are (n, 2) as in window_corners, or (n, 0) where windows are whole grids.
    """
    places = np.zeros((len(draws), 4), np.int64)
    places[:, 2:] = grid
    if grid != (window, window):
        places[:, 0], places[:, 1] = window_corners(grid, window, draws)
    return places


def true_edges(places: IntArray, window: int) -> NDArray[np.bool_]:
    """Whether top, left and right edge (n, 3) of windows at `places` (n, 4) are the grid's own."""
    tops, lefts, _, columns = places.T
    return np.stack([tops == 0, lefts == 0, lefts + window == columns], axis=1)


def check_tokenizer(store: CodeStore, fingerprint: str, user: str) -> None:
    """Raise DatasetError unless the store's codes are of the tokenizer that `user` expects."""
    made = store.provenance["image"]["fingerprint"]
    if made != fingerprint:
        raise DatasetError(
            f"{store.path} was encoded by tokenizer {made}, but {user} has the codes of "
            f"{fingerprint}. Encode the images with that one."
        )


def check_together(stores: Sequence[CodeStore], window: int) -> None:
    """Raise DatasetError unless all stores have one tokenizer and grids as large as `window`."""
    fingerprint = stores[0].provenance["image"]["fingerprint"]
    for store in stores:
        check_tokenizer(store, fingerprint, str(stores[0].path))
        for grid in sorted(store.grids):
            if min(grid_shape(grid)) < window:
                raise DatasetError(
                    f"{store.path} has grids of {grid} codes, smaller than the prior's window of "
                    f"{window}x{window}. Encode larger images, or train with a smaller --window."
                )


def join_labels(stores: Sequence[CodeStore]) -> tuple[list[str], list[IntArray]]:
    """Class names over all stores, and for each store the new label of each of its labels.

    Names are in the order of their first occurrence, so appending a store renumbers none. The last
    entry of each table is -1, so that label -1 (none) stays -1.
    """
    names = list(dict.fromkeys(name for store in stores for name in store.label_names))
    numbers = {name: number for number, name in enumerate(names)}
    return names, [
        np.array([*(numbers[name] for name in store.label_names), -1], np.int64) for store in stores
    ]


def _keys_of(store: CodeStore, grid: str, rows: IntArray) -> pa.Array:
    """The keys (n,) of row numbers (n,) of one grid."""
    lines = store.index.filter(pc.equal(store.index["grid"], grid)).select(["row", "key"])
    places = np.searchsorted(lines["row"].to_numpy(), rows)  # ascending within a grid
    return lines["key"].combine_chunks().take(pa.array(places))
