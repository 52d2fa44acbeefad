"""The item at each position of an endless training stream, as a function of the position.

No state is kept between positions, so any rank can make any step first. Items are numbers; in
sources.py they are images.
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

TURNS = 10_000  # positions of a period, in which each source has its share exactly
# Third entry of a permutation's key, so that its uses for one (seed, epoch) are independent. A
# shuffle of all items has none.
SHARDS, MIXTURE, FIRST_WINDOW = 0, 1, 2

# Neighbouring positions use the same few; setting one up takes as long as 5,000 look-ups.
permutation = functools.lru_cache(maxsize=16)(KeyedPermutation)


class KeyedOrder:
    """Each item once an epoch, in an order that is a function of (seed, epoch).

    Items are numbered shard by shard. Each epoch permutes the shards, then the items among
    `shards_together` neighbouring shards, so that no more shards are in use at a time; None
    permutes all items at once.
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
    """The source of each position, with sources mixed by weight.

    Each period of TURNS positions gives every source its share, in a keyed order. A source's items
    come in their own order, so an item's position in its source follows from the number of whole
    periods before. Raises ConfigError on a weight that is not above 0, not finite, or below a
    TURNS-th of their sum.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.seed = seed
        #: Positions of each source in every period.
        self.turns = _apportion(weights)

    def __call__(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """The sources (N,) of `positions` (N,), and their numbers of earlier positions (N,)."""
        if len(self.turns) == 1:
            return np.zeros_like(positions), positions
        periods, places = np.divmod(positions, TURNS)
        both = by_group(periods, lambda period, inside: self._period(period)[places[inside]])
        return both[:, 0], both[:, 1]

    def _period(self, number: int) -> IntArray:
        """(TURNS, 2): the source, and how many earlier positions it had, in one period."""
        shuffle = permutation(TURNS, self.seed, number, MIXTURE)
        sources = np.repeat(np.arange(len(self.turns)), self.turns)[shuffle(np.arange(TURNS))]
        earlier = np.empty(TURNS, np.int64)
        for source, turns in enumerate(self.turns):
            earlier[sources == source] = number * turns + np.arange(turns)
        return np.stack([sources, earlier], axis=1)


def _apportion(weights: Sequence[float]) -> IntArray:
    """TURNS divided in proportion to the weights, by the largest remainder method."""
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
    """The first position of each when all are concatenated."""
    return np.cumsum(sizes) - sizes
