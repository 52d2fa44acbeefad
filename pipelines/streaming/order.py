"""Which item stands at a position of an endless training stream, as a function of the position.

Nothing is remembered from one position to the next, so that any step can be made first, on any
rank. An item is a number; what it stands for is pipelines/streaming/sources.py's business.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ops.config import ConfigError
from ops.grouping import by_group
from ops.permutation import KeyedPermutation

IntArray = NDArray[np.int64]

TURNS = 10_000  # positions in which each source has its share exactly, so weights count in 1/10,000
# Third numbers of a permutation's key, to keep the uses of one (seed, epoch) apart. A global
# shuffle has none: its order is that of the first runs.
SHARDS, MIXTURE, FIRST_WINDOW = 0, 1, 2

# Neighbouring positions ask for the same few; setting one up takes as long as 5,000 look-ups.
permutation = functools.lru_cache(maxsize=16)(KeyedPermutation)


class KeyedOrder:
    """Every epoch each item once, in an order of its own that (seed, epoch) decides.

    Items are numbered shard by shard. Each epoch shards are permuted, then items are permuted
    among `shards_together` neighbours of that order, so that no more shards than these are in use
    at a time; None shuffles all items at once.
    """

    def __init__(
        self, shard_sizes: IntArray, seed: int, shards_together: int | None = None
    ) -> None:
        self.shard_sizes, self.seed = shard_sizes, seed
        self.length = int(shard_sizes.sum())
        whole = shards_together is None or shards_together >= len(shard_sizes)
        self.shards_together = None if whole else shards_together

    def __call__(self, positions: IntArray) -> IntArray:
        """Items at `positions` (N,), counted from the start of epoch 0."""
        epochs, places = np.divmod(positions, self.length)
        return by_group(epochs, lambda epoch, inside: self._shuffled(epoch, places[inside]))

    def _shuffled(self, epoch: int, places: IntArray) -> IntArray:
        """Items at `places` (n,), counted from the start of one epoch."""
        if self.shards_together is None:
            return permutation(self.length, self.seed, epoch)(places)
        count = len(self.shard_sizes)
        visits = permutation(count, self.seed, epoch, SHARDS)(np.arange(count))
        firsts, starts = _starts(self.shard_sizes)[visits], _starts(self.shard_sizes[visits])
        window_starts = starts[:: self.shards_together]
        window_ends = np.append(window_starts[1:], self.length)

        def shuffle_window(window: int, inside: IntArray) -> IntArray:
            start, end = window_starts[window], window_ends[window]
            key = (self.seed, epoch, FIRST_WINDOW + window)
            shuffled: IntArray = start + permutation(int(end - start), *key)(places[inside] - start)
            return shuffled

        windows = np.searchsorted(window_starts, places, side="right") - 1
        shuffled = by_group(windows, shuffle_window)
        visit = np.searchsorted(starts, shuffled, side="right") - 1
        items: IntArray = firsts[visit] + shuffled - starts[visit]
        return items


class SourceTurns:
    """Whose turn each position is, among sources mixed by weight.

    Each stretch of TURNS positions gives every source its share, in a keyed order; a source takes
    its own items one after another, so a position's place in its source is known by counting
    whole stretches. Raises ConfigError on a weight that is not above 0, or not finite, or below
    one TURNS-th of all.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.seed = seed
        #: Turns of each source in every stretch.
        self.turns = _apportion(weights)

    def __call__(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """The sources (N,) of `positions` (N,), and how many earlier turns each one had (N,)."""
        if len(self.turns) == 1:
            return np.zeros_like(positions), positions
        stretches, places = np.divmod(positions, TURNS)
        both = by_group(stretches, lambda stretch, inside: self._stretch(stretch)[places[inside]])
        return both[:, 0], both[:, 1]

    def _stretch(self, number: int) -> IntArray:
        """(TURNS, 2): the source, and its earlier turns, at each place of one stretch."""
        shuffle = permutation(TURNS, self.seed, number, MIXTURE)
        sources = np.repeat(np.arange(len(self.turns)), self.turns)[shuffle(np.arange(TURNS))]
        earlier = np.empty(TURNS, np.int64)
        for source, turns in enumerate(self.turns):
            earlier[sources == source] = number * turns + np.arange(turns)
        return np.stack([sources, earlier], axis=1)


def _apportion(weights: Sequence[float]) -> IntArray:
    """TURNS shared out by weight, the last ones to the largest remainders."""
    for weight in weights:
        if not 0 < weight < np.inf:
            raise ConfigError(f"A weight must be a number above 0, found {weight}.")
    shares = np.array(weights, np.float64) / sum(weights) * TURNS
    turns = np.floor(shares).astype(np.int64)
    order = np.argsort(turns - shares, kind="stable")
    turns[order[: TURNS - turns.sum()]] += 1
    if not turns.all():
        raise ConfigError(
            f"Weight {weights[int(turns.argmin())]} is less than a {TURNS:,}th of all weights "
            f"({', '.join(map(str, weights))}). Raise it, or leave that store out."
        )
    return turns


def _starts(sizes: IntArray) -> IntArray:
    """Where each of these begins when they lie end to end."""
    return np.cumsum(sizes) - sizes
