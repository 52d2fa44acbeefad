"""Per-group computation on an array, with results in the original order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def by_group(
    groups: NDArray[np.integer[Any]], compute: Callable[[int, NDArray[np.int64]], NDArray[Any]]
) -> NDArray[Any]:
    """Results (N, ...) gathered from `compute(group, positions)` -> (n, ...) for each group.

    `groups` (N,), N >= 1, is the group of each position; `positions` (n,) are those of one group.
    The result of a single group is returned without a copy.
    """
    if (groups == groups[0]).all():
        return compute(int(groups[0]), np.arange(len(groups)))
    results: NDArray[Any] | None = None
    for group in np.unique(groups):
        positions = np.flatnonzero(groups == group)
        part = compute(int(group), positions)
        if results is None:
            results = np.empty((len(groups), *part.shape[1:]), part.dtype)
        results[positions] = part
    assert results is not None
    return results
