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
from pipelines.inputs import held_out_hashes
from pipelines.store import CodeStore, code_dtype, grid_shape, numbered_images
from pipelines.streaming.tracks import rows_with_all

IntArray = NDArray[np.int64]
AT_ONCE = 1 << 20  # rows for which temporary arrays exist at a time


class DatasetError(UserError):
    """A store that cannot be trained on as asked."""


class Every:
    """The numbers 0 .. length - 1, as an array of them would give them, without the array."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, positions: IntArray) -> IntArray:
        return positions


class Chosen:
    """Some numbers, ascending, in four bytes each where that is enough."""

    def __init__(self, flags: NDArray[np.bool_]) -> None:
        dtype = np.uint32 if len(flags) <= 2**32 else np.int64
        found = [
            (first + np.flatnonzero(flags[first : first + AT_ONCE])).astype(dtype)
            for first in range(0, len(flags), AT_ONCE)
        ]
        self._numbers = np.concatenate([np.empty(0, dtype), *found])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, positions: IntArray) -> IntArray:
        numbers: IntArray = self._numbers[positions].astype(np.int64)
        return numbers


class CodeSource:
    """The usable rows of a store, grouped as images: rows of one key are views of one image.

    Usable rows are numbered by line, from 0: views of an image are neighbours, and images are in
    index order of their first views, so shard by shard. With `every_view` each row counts as an
    image; whether it is held out still depends on its key. Rows without one of `tracks` are not
    usable. Where each usable row is an image, which is the usual case, the lines are those of the
    store's row table, which is mapped into memory, not copied.
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
        self._table = store.rows
        places = _places_with_all(store, self.grids, self.tracks)
        hashes, images = self._table.key_hash, self._table.image
        if places is not None:
            hashes = hashes[places]
            images = None if images is None else numbered_images(images[places])
        if images is not None and not every_view:
            order = np.argsort(images, kind="stable")
            places = order if places is None else places[order]
            hashes = hashes[order]
            self.views: IntArray | None = np.bincount(images)
        else:
            self.views = None  # one each
        #: Positions in the row table of the lines (N,); None where these are equal.
        self._places = places
        self.num_lines = len(hashes)
        self._first_lines = None if self.views is None else np.cumsum(self.views) - self.views
        held = _held_out(hashes, self._first_lines, held_out_share)
        #: Image numbers to train on and held out, ascending.
        self.train: Every | Chosen = Chosen(~held) if held.any() else Every(len(held))
        self.held_out = Chosen(held)

    def rows(self, lines: IntArray) -> tuple[IntArray, IntArray]:
        """For lines (n,): the positions in `grids`, and the row numbers in these grids."""
        places = lines if self._places is None else self._places[lines]
        ends = np.cumsum([self._table.grids[grid] for grid in self.grids])
        grids: IntArray = np.searchsorted(ends, places, side="right")
        return grids, self._table.row[places]

    def first_line(self, images: IntArray) -> IntArray:
        """The lines (n,) of the first views of `images` (n,)."""
        return images if self._first_lines is None else self._first_lines[images]

    @property
    def shard_sizes(self) -> IntArray:
        """Numbers (S,) of images to train on per shard that has any, in the order of `train`."""
        per_task = self.store.rows_per_task
        lengths = [int(self.store.ok_rows(grid)[-1]) // per_task + 1 for grid in self.grids]
        starts = np.cumsum([0, *lengths])
        counts = np.zeros(starts[-1], np.int64)
        for first in range(0, len(self.train), AT_ONCE):
            images = self.train[np.arange(first, min(first + AT_ONCE, len(self.train)))]
            grids, rows = self.rows(self.first_line(images))
            counts += np.bincount(starts[grids] + rows // per_task, minlength=len(counts))
        sizes: IntArray = counts[counts > 0]
        return sizes

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
        several = self.views is not None and self.num_lines > len(self.views)
        return several or any(grid_shape(grid) != (window, window) for grid in self.grids)

    def lines(self, images: IntArray, draws: NDArray[np.float64]) -> IntArray:
        """The lines (n,) of one view of each of `images` (n,), chosen by `draws` (n,) in [0, 1)."""
        views = 1 if self.views is None else self.views[images]
        return self.first_line(images) + (draws * views).astype(np.int64)

    def middle_lines(self, images: IntArray) -> IntArray:
        """The lines (n,) of the middle views: of ten crops, the central one without flip."""
        views = 1 if self.views is None else self.views[images]
        return self.first_line(images) + (views - 1) // 2

    def labels(self, lines: IntArray) -> IntArray:
        """The store's own labels (n,) of the rows at `lines` (n,); -1 for none."""
        grids, rows = self.rows(lines)
        return by_group(
            grids,
            lambda number, places: self.store.labels(self.grids[number], rows[places]).astype(
                np.int64
            ),
        )

    def keys(self, lines: IntArray) -> NDArray[Any]:
        """The keys (n,) of the rows at `lines` (n,), looked up in the whole index."""
        grids, rows = self.rows(lines)

        def of_grid(number: int, places: IntArray) -> NDArray[Any]:
            found = _keys_of(self.store, self.grids[number], rows[places])
            values: NDArray[Any] = found.to_numpy(zero_copy_only=False)
            return values

        return by_group(grids, of_grid)


def _places_with_all(
    store: CodeStore, grids: Sequence[str], tracks: Mapping[str, CodeStore]
) -> IntArray | None:
    """Positions in the store's row table of the rows that every track has; None for all rows."""
    if not tracks:
        return None
    table, found = store.rows, [np.empty(0, np.int64)]
    for grid in grids:
        rows = rows_with_all(store, grid, tracks)
        found.append(table.of_grid(grid).start + np.searchsorted(store.ok_rows(grid), rows))
    places = np.concatenate(found)
    return None if len(places) == len(table.row) else places


def _held_out(
    hashes: NDArray[np.uint32], first_lines: IntArray | None, share: float
) -> NDArray[np.bool_]:
    """Which images (M,) are held out, by the hashes (N,) of their lines' keys."""
    number = len(hashes) if first_lines is None else len(first_lines)
    held = np.zeros(number, bool)
    for first in range(0, number, AT_ONCE):
        part = slice(first, first + AT_ONCE)
        chosen = hashes[part] if first_lines is None else hashes[first_lines[part]]
        held[part] = held_out_hashes(chosen, share)
    return held


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
