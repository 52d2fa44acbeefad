"""Copying the shards of stores in object stores shortly before their rows are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ops.config import UserError
from pipelines.store import CodeStore

IntArray = NDArray[np.int64]
DOWNLOADS = 4  # shards that are copied at a time

T = TypeVar("T", bound="Rows")


class Rows(Protocol):
    """Rows in the order in which they are read."""

    @property
    def pool(self) -> IntArray: ...  # (N,) position in the list of pools

    @property
    def row(self) -> IntArray: ...  # (N,) row number there


#: One grid of a store, with the tracks that are read as well.
PoolStores = tuple[str, Sequence[CodeStore]]


def copied_ahead(chunks: Iterator[T], pools: Sequence[PoolStores]) -> Iterator[T]:
    """The same chunks of rows; while one is read, the shards of the next are copied.

    What cannot be copied is left to the reader, who raises the error.
    """
    threads = ThreadPoolExecutor(DOWNLOADS, "prefetch")

    def copy(store: CodeStore, grid: str, task: int) -> None:
        with contextlib.suppress(UserError, OSError):
            store.prefetch(grid, task)

    def begin(chunk: T | None) -> None:
        if chunk is not None:
            for number, task in _shards(chunk, pools):
                grid, stores = pools[number]
                for store in stores:
                    threads.submit(copy, store, grid, task)

    try:
        chunk = next(chunks, None)
        begin(chunk)
        while chunk is not None:
            following = next(chunks, None)
            begin(following)
            yield chunk
            chunk = following
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _shards(rows: Rows, pools: Sequence[PoolStores]) -> list[tuple[int, int]]:
    """(pool, task) of the shards of rows, in the order in which they are first read."""
    sizes = np.array([stores[0].rows_per_task for _, stores in pools])
    pairs = np.stack([rows.pool, rows.row // sizes[rows.pool]], axis=1)
    found, first = np.unique(pairs, axis=0, return_index=True)
    return [(int(pool), int(task)) for pool, task in found[np.argsort(first)]]
