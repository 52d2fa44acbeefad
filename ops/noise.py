"""Counter-based uniform random numbers: a pure function of (seed, sample, row, column).

No state is kept, so the numbers do not depend on the order of sampling, the batch or the process.
The generator is Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.config import ConfigError

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
ROUNDS = 10
LOW_32_BITS = np.uint64(0xFFFFFFFF)


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Four random 32-bit words (..., 4) for each counter (..., 4) under key (2,)."""
    words = [counter[..., i].astype(np.uint64) for i in range(4)]
    keys = [int(k) for k in key]
    for _ in range(ROUNDS):
        first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [
            (second >> np.uint64(32)) ^ words[1] ^ np.uint64(keys[0]),
            second & LOW_32_BITS,
            (first >> np.uint64(32)) ^ words[3] ^ np.uint64(keys[1]),
            first & LOW_32_BITS,
        ]
        keys = [(k + int(step)) & 0xFFFFFFFF for k, step in zip(keys, KEY_STEPS, strict=True)]
    return np.stack(words, axis=-1).astype(np.uint32)


def uniforms(
    seed: int,
    samples: Sequence[int] | NDArray[np.integer[Any]],
    rows: int,
    columns: int,
    first_row: int = 0,
) -> NDArray[np.float64]:
    """Numbers in [0, 1), (len(samples), rows, columns), with 53 random bits each.

    The numbers of rows first_row .. first_row + rows - 1. A cell's number does not depend on the
    size of the grid. Raises ConfigError when the seed or a sample's number is not in
    0 .. 2**64 - 1.
    """
    # An array may have millions of samples: checking its minimum and maximum is enough.
    extremes = [samples.min(), samples.max()] if isinstance(samples, np.ndarray) else samples
    for name, number in [("seed", seed), *(("sample", int(sample)) for sample in extremes)]:
        if not 0 <= number < 2**64:
            raise ConfigError(f"{name} must be a whole number from 0 to 2**64 - 1, found {number}.")
    numbers = np.array(samples, np.uint64).reshape(-1, 1, 1)
    counter = np.empty((len(samples), rows, columns, 4), np.uint32)
    counter[..., 0] = np.arange(columns, dtype=np.uint32)
    counter[..., 1] = np.arange(first_row, first_row + rows, dtype=np.uint32)[:, None]
    counter[..., 2] = numbers & LOW_32_BITS
    counter[..., 3] = numbers >> np.uint64(32)
    words = philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))
    high, low = words[..., 0] >> np.uint32(5), words[..., 1] >> np.uint32(6)
    return (high * 2.0**26 + low) / 2.0**53
