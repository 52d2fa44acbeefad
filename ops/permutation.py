"""Pseudorandom permutation of range(n) that needs no table of n entries.

A balanced Feistel network over the next even power of two with cycle walking: it is applied again
until the result is in range (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). A
shuffled epoch of any length is resumed from one integer, the position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.config import ConfigError

ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class KeyedPermutation:
    """The permutation of range(length) keyed by (seed, epoch, *more), all integers.

    Raises ConfigError when `length` is below 1.
    """

    def __init__(self, length: int, seed: int, epoch: int, *more: int) -> None:
        if length < 1:
            raise ConfigError(f"A shuffle needs at least one item, found {length}.")
        self.length = length
        self._half_bits = max(1, -(-(length - 1).bit_length() // 2))
        mask = np.uint64((1 << self._half_bits) - 1)
        start = _mix(np.array([seed % 2**64], np.uint64))
        for number in (epoch, *more):
            start = _mix(start + np.array([number], np.uint64))
        # The round function takes half of the bits, 2**10 values for a million items: a table of
        # it takes a fifth of the time of computing it for every position.
        halves = np.arange(1 << self._half_bits, dtype=np.uint64)
        keys = [_mix(start + np.array([i], np.uint64) * GOLDEN) for i in range(ROUNDS)]
        self._rounds = [(_mix(halves + key) & mask).astype(np.int64) for key in keys]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items (same shape) at `positions` (any shape), both in 0 .. length - 1."""
        items = self._encipher(np.asarray(positions, np.int64).ravel())
        outside = np.flatnonzero(items >= self.length)
        while len(outside):
            items[outside] = self._encipher(items[outside])
            outside = outside[items[outside] >= self.length]
        return items.reshape(np.shape(positions))

    def _encipher(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        left, right = numbers >> self._half_bits, numbers & ((1 << self._half_bits) - 1)
        for table in self._rounds:
            left, right = right, left ^ table.take(right)
        return (left << self._half_bits) | right


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele et al. 2014): each input bit affects every output bit."""
    numbers = numbers + GOLDEN
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
