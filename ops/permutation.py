"""A shuffle without a table: position -> item, computed from a key alone.

A balanced Feistel network over the next even power of two, walked until it lands inside the range
(Black & Rogaway 2002, "Ciphers with arbitrary finite domains"), so that resuming a shuffled epoch
needs one integer however many items there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.config import ConfigError

ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class KeyedPermutation:
    """The permutation of range(length) that belongs to (seed, epoch)."""

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        if length < 1:
            raise ConfigError(f"A shuffle needs at least one item, found {length}.")
        self.length = length
        self._half_bits = np.uint64(max(1, -(-(length - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        start = _mix(_mix(np.array([seed % 2**64], np.uint64)) + np.uint64(epoch))
        self._keys = [_mix(start + np.array([i], np.uint64) * GOLDEN) for i in range(ROUNDS)]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items at `positions` (any shape, each in 0 .. length-1)."""
        walked = self._encipher(positions.astype(np.uint64))
        outside = walked >= self.length
        while outside.any():
            walked[outside] = self._encipher(walked[outside])
            outside = walked >= self.length
        return walked.astype(np.int64)

    def _encipher(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> self._half_bits, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half_bits) | right


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    numbers = numbers + GOLDEN
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
