"""Drift: whether the distribution of codes differs between shards more than by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.permutation import KeyedPermutation
from pipelines.evaluation.code_usage import usage_of
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.store_rows import Ints, RowBatch

PERMUTATIONS = 19  # so the smallest p-value is 0.05
MAX_GROUPS = 32
MAX_BYTES = 128 << 20  # of counts; more shards than fit are joined

DRIFT_NAMES = ("drift", "drift_by_chance", "drift_p_value")


class Drift:
    """Mutual information between shard and code, and its values where rows are permuted.

    Whole rows are permuted, keyed by `seed`: the codes of an image depend on each other. Where
    there are more shards than counts fit into MAX_BYTES, neighbouring rows form the groups instead.
    """

    def __init__(self, shards: Ints, codebook_size: int, seed: int) -> None:
        self._size = codebook_size
        total = int(shards.sum())
        most = max(1, min(MAX_GROUPS, MAX_BYTES // (8 * codebook_size * (PERMUTATIONS + 1))))
        ends = np.cumsum(shards)
        if len(shards) > most:
            ends = np.arange(1, most + 1) * total // most
        self._ends: Ints = ends
        orders = range(PERMUTATIONS if len(ends) > 1 else 0)
        self._orders = [KeyedPermutation(total, seed, number) for number in orders]
        self._counts = np.zeros((len(self._orders) + 1, len(ends), codebook_size), np.int64)

    def update(self, batch: RowBatch) -> None:
        """Count the codes of a batch, as they lie and for each permutation."""
        if not self._orders:
            return
        positions = batch.first + np.arange(len(batch.rows))
        places = [positions, *(order(positions) for order in self._orders)]
        for counts, found in zip(self._counts, places, strict=True):
            groups = np.searchsorted(self._ends, found, side="right")
            flat = (groups[:, None] * self._size + batch.codes).ravel()
            counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)

    def add_to(self, measured: Measurements) -> None:
        """Add the drift, its mean under permutation and the p-value."""
        if not self._orders:
            measured.lack(DRIFT_NAMES, "all rows are in one shard")
            return
        observed, *permuted = (mutual_information(counts) for counts in self._counts)
        rows = int(self._ends[-1])
        measured.facts["drift_groups"] = len(self._ends)
        measured.add("drift", observed, "bits a code", rows)
        measured.add("drift_by_chance", float(np.mean(permuted)), "bits a code", rows)
        extreme = 1 + sum(value >= observed for value in permuted)
        measured.add("drift_p_value", extreme / (len(permuted) + 1), "probability", rows)


def mutual_information(counts: NDArray[np.int64]) -> float:
    """Between group and code, in bits, from how often each occurs: (groups, K).

    It is the entropy of all codes less the mean entropy of groups; 0 where they are alike.
    """
    shares = counts.sum(1) / counts.sum()
    within = sum(share * usage_of(group).bits for share, group in zip(shares, counts, strict=True))
    return usage_of(counts.sum(0)).bits - float(within)
