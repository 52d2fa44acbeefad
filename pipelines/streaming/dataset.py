"""Code stores as shuffled training batches, each a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops.grouping import by_group
from ops.noise import uniforms
from pipelines.store import CodeStore, grid_shape
from pipelines.streaming.order import IntArray, KeyedOrder, SourceTurns
from pipelines.streaming.prefetch import copied_ahead
from pipelines.streaming.sources import (
    CodeSource,
    DatasetError,
    check_together,
    cut_windows,
    join_labels,
    places_of,
    true_edges,
)
from pipelines.streaming.tracks import as_entries, frames_of, has_code_grids, open_tracks

CodeBatch = dict[str, Tensor]
# Samples whose rows are computed at a time: of fewer, numpy's overhead would take most of the time.
SAMPLES_AHEAD = 16_384


class Samples(NamedTuple):
    """Which rows to read, and where to cut windows from them."""

    source: IntArray  # (N,) position in CodeDataset.sources
    line: IntArray  # (N,) line of that source, see CodeSource
    cuts: NDArray[np.float64]  # (N, 2) in [0, 1); (N, 0) where each grid is one window


class Pool(NamedTuple):
    """One grid shape of one store."""

    store: CodeStore
    grid: str
    tracks: Mapping[str, CodeStore]

    @property
    def shape(self) -> tuple[int, int]:
        return grid_shape(self.grid)


class Places(NamedTuple):
    """Samples as rows of the stores."""

    pool: IntArray  # (N,) position in CodeDataset._pools
    row: IntArray  # (N,) row number of that grid
    cuts: NDArray[np.float64]  # as in Samples
    label: IntArray  # (N,) position in CodeDataset.label_names; -1 for none

    def part(self, number: int, size: int) -> Places:
        """Samples `number * size` to `(number + 1) * size`, or to the end."""
        part = slice(number * size, (number + 1) * size)
        return Places(self.pool[part], self.row[part], self.cuts[part], self.label[part])


class CodeDataset:
    """Windows of `window` x `window` codes cut from the rows of one store or several.

    An epoch has each image of a store once, in a keyed order; (seed, position) also decides which
    of its views is taken, and where the window lies in a larger grid. With `every_view` each row
    counts as an image. Held-out keys (see pipelines/inputs/holdout.py) never train, in no view.

    Several stores are mixed by `weights` (default: by their numbers of images), each with epochs
    of its own. Their codes must be one tokenizer's; their labels are joined by name.

    `train_batch(step)` is a pure function, so resuming needs the step alone. Rank `rank` of
    `world_size` takes every world_size-th sample of a global batch of `world_size * batch_size`:
    the stream of global batches is the same for any number of ranks.

    `tracks` names the tracks that batches hold, too; rows without them are left out.

    `cache_memory`, in bytes, restricts neighbouring samples to as many shards as fit in it, for
    stores on slow storage; None shuffles all rows at once. Of a store in an object store that is
    larger than a third of its cache, neighbouring samples are restricted to a third of it, and
    their shards are copied before they are read.

    Raises DatasetError where nothing is left to train on (unless `may_be_all_held_out`), a grid is
    smaller than the window, or the stores' tokenizers or tracks differ.
    """

    def __init__(
        self,
        stores: CodeStore | Sequence[CodeStore],
        *,
        window: int,
        batch_size: int,
        seed: int = 0,
        held_out_share: float = 0.0,
        may_be_all_held_out: bool = False,
        weights: Sequence[float] | None = None,
        every_view: bool = False,
        tracks: Sequence[str] = (),
        cache_memory: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        stores = [stores] if isinstance(stores, CodeStore) else list(stores)
        check_together(stores, window)
        if not 0 <= rank < world_size:
            raise DatasetError(f"rank must be from 0 to {world_size - 1}, found {rank}.")
        self.window, self.batch_size, self.seed = window, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.tracks = tuple(tracks)
        self.sources = [
            CodeSource(store, held_out_share, every_view, opened)
            for store, opened in zip(stores, open_tracks(stores, self.tracks), strict=True)
        ]
        #: The classes; a label is a position in this list.
        self.label_names, self._label_tables = join_labels(stores)
        self._pools = [
            Pool(source.store, grid, source.tracks)
            for source in self.sources
            for grid in source.grids
        ]
        grids = np.array([len(source.grids) for source in self.sources])
        self._first_pool = np.cumsum(grids) - grids
        self._needs_draws = any(source.needs_draws(window) for source in self.sources)
        if not may_be_all_held_out:
            self._init_order(weights, cache_memory)

    def _init_order(self, weights: Sequence[float] | None, cache_memory: int | None) -> None:
        """Set up the order of samples, by position."""
        for source in self.sources:
            if not len(source.train):
                path = source.store.path
                also = "".join(f" with a partner in track {name!r}" for name in self.tracks[:1])
                raise DatasetError(f"{path} has no row to train on{also}. Did encoding succeed?")
        images = [len(source.train) for source in self.sources]
        if weights is not None and len(weights) != len(images):
            raise DatasetError(f"{len(images)} stores, but {len(weights)} weights. Give one each.")
        self._turns = SourceTurns(weights or images, self.seed)
        share = None if cache_memory is None else cache_memory // len(images)
        self._orders = [
            KeyedOrder(
                source.shard_sizes, self.seed + number, source.shards_within(share, len(images))
            )
            for number, source in enumerate(self.sources)
        ]
        # Of a small store, at most one epoch is computed ahead.
        most = sum(images) // self.global_batch_size
        self._steps_ahead = max(1, min(SAMPLES_AHEAD // self.batch_size, most))

    @property
    def global_batch_size(self) -> int:
        """Samples a step on all ranks together."""
        return self.batch_size * self.world_size

    @property
    def steps_per_epoch(self) -> float:
        """Steps whose samples are as many as all stores have images to train on."""
        return sum(len(source.train) for source in self.sources) / self.global_batch_size

    @property
    def order(self) -> dict[str, int | list[int]]:
        """What decides the order of the samples, as JSON: where it is equal, so are the batches."""
        return {
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "images": [order.length for order in self._orders],
            "shards_together": [order.shards_together or 0 for order in self._orders],
            "turns": self._turns.turns.tolist(),
        }

    def train_batch(self, step: int) -> CodeBatch:
        """This rank's batch of one step: int64 "codes" (B, window, window), "label" (B,), -1 for
        none, "place" (B, 4), the window's top row and left column in the whole grid and the grid's
        rows and columns, and bool "true_edges" (B, 3), whether top, left and right edge are the
        whole grid's own. Tracks of codes come in the same way under their names; "boxes" (B, M, 5)
        and "keypoints" (B, P, 2) in the window's frame, see prior.conditions.frames; with boxes
        also "crop" (B, 4), the part of the whole image that the window shows."""
        return next(self.batches(step, step + 1))

    def train_keys(self, step: int) -> list[str]:
        """The keys of that batch's samples (B), looked up in the whole index: slow."""
        samples = self._train_samples(np.array([step]))

        def keys(number: int, places: IntArray) -> NDArray[Any]:
            return self.sources[number].keys(samples.line[places])

        names: list[str] = by_group(samples.source, keys).tolist()
        return names

    def batches(self, start: int, stop: int | None = None, stride: int = 1) -> Iterator[CodeBatch]:
        """The batches of steps `start`, `start + stride` and so on before `stop`; None: endless."""
        chunks = self._chunks(start, stop, stride)
        if any(pool.store.cached_bytes is not None for pool in self._pools):
            stores = [(pool.grid, (pool.store, *pool.tracks.values())) for pool in self._pools]
            chunks = copied_ahead(chunks, stores)
        for places in chunks:
            count = len(places.row) // self.batch_size
            yield from (self._read(places.part(n, self.batch_size)) for n in range(count))

    def _chunks(self, start: int, stop: int | None, stride: int) -> Iterator[Places]:
        """The samples of these steps, many steps at a time."""
        while stop is None or start < stop:
            end = start + stride * self._steps_ahead
            steps = np.arange(start, end if stop is None else min(end, stop), stride)
            yield self._places(self._train_samples(steps))
            start = end

    def _train_samples(self, steps: IntArray) -> Samples:
        """The samples of this rank at `steps` (N,): step after step, N * batch_size of them."""
        within = self.rank + self.world_size * np.arange(self.batch_size)
        positions = (steps[:, None] * self.global_batch_size + within).ravel()
        # One number each for the window's row, its column and the view.
        draws = uniforms(self.seed, positions, 1, 3)[:, 0] if self._needs_draws else None
        sources, own_positions = self._turns(positions)

        def lines(number: int, places: IntArray) -> IntArray:
            source = self.sources[number]
            images = source.train[self._orders[number](own_positions[places])]
            if draws is None:
                return source.first_line(images)
            return source.lines(images, draws[places, 2])

        cuts = np.empty((len(positions), 0)) if draws is None else draws[:, :2]
        return Samples(sources, by_group(sources, lines), cuts)

    def held_out_batches(self, most: int = 64, cut: float = 0.5) -> list[CodeBatch]:
        """Windows of up to `most` held-out images, evenly spaced among them, of middle views.

        `cut` in [0, 1) places windows in larger grids: 0.5 in the middle, 0 in the top left corner.
        """
        sizes = np.array([len(source.held_out) for source in self.sources])
        total = int(sizes.sum())
        chosen = np.arange(min(most, total)) * total // max(1, min(most, total))
        if not len(chosen):
            return []
        sources = np.searchsorted(np.cumsum(sizes), chosen, side="right")
        numbers = chosen - (np.cumsum(sizes) - sizes)[sources]

        def lines(number: int, places: IntArray) -> IntArray:
            source = self.sources[number]
            return source.middle_lines(source.held_out[numbers[places]])

        samples = Samples(sources, by_group(sources, lines), np.full((len(chosen), 2), cut))
        places, size = self._places(samples), self.batch_size
        return [self._read(places.part(n, size)) for n in range(-(-len(chosen) // size))]

    def _places(self, samples: Samples) -> Places:
        """The rows of samples, and their labels among the joined names."""

        def column(take: Callable[[CodeSource, IntArray], NDArray[Any]]) -> IntArray:
            return by_group(
                samples.source, lambda n, places: take(self.sources[n], samples.line[places])
            )

        labels = by_group(
            samples.source,
            lambda n, places: self._label_tables[n][self.sources[n].labels(samples.line[places])],
        )
        grid, row = column(lambda source, lines: np.stack(source.rows(lines), axis=1)).T
        return Places(self._first_pool[samples.source] + grid, row, samples.cuts, labels)

    def _read(self, places: Places) -> CodeBatch:
        """Read the samples at `places` as a batch."""
        where = by_group(places.pool, lambda number, chosen: self._where(number, places, chosen))
        batch = {
            "codes": torch.from_numpy(self._stored(places, None).astype(np.int64)),
            "label": torch.from_numpy(places.label.copy()),
            "place": torch.from_numpy(where),
            "true_edges": torch.from_numpy(true_edges(where, self.window)),
        }
        if self.tracks:
            frames = frames_of(batch["place"], self.window)
            for name in self.tracks:
                batch |= as_entries(name, self._stored(places, name), frames)
        return batch

    def _where(self, number: int, places: Places, chosen: IntArray) -> IntArray:
        return places_of(self._pools[number].shape, self.window, places.cuts[chosen])

    def _stored(self, places: Places, track: str | None) -> NDArray[Any]:
        """Stored rows of the codes (`track` None) or of a track; grids are cut to the window."""

        def rows(number: int, chosen: IntArray | slice) -> NDArray[Any]:
            pool = self._pools[number]
            store = pool.store if track is None else pool.tracks[track]
            whole = store.read(pool.grid, places.row[chosen])
            if not has_code_grids(store) or pool.shape == (self.window, self.window):
                return whole
            return cut_windows(whole, self.window, places.cuts[chosen])

        # The usual case of one pool needs no grouping.
        one = len(self._pools) == 1
        return rows(0, slice(None)) if one else by_group(places.pool, rows)
