"""Arrays answered group by group and put together again in their own order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def by_group(
    groups: NDArray[np.integer[Any]], answer: Callable[[int, NDArray[np.int64]], NDArray[Any]]
) -> NDArray[Any]:
    """(N, ...) made of `answer(group, places)` (n, ...), for each group the places (n,) it has.

    `groups` (N,) says which group stands at each place; N is at least 1. One answer is handed on
    as it is, without a copy.
    """
    if (groups == groups[0]).all():
        return answer(int(groups[0]), np.arange(len(groups)))
    together: NDArray[Any] | None = None
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        part = answer(int(group), places)
        if together is None:
            together = np.empty((len(groups), *part.shape[1:]), part.dtype)
        together[places] = part
    assert together is not None
    return together
