"""Reading something of each of many files, side by side, with a bar where that takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import pyarrow as pa

from pipelines.console import progress_bar

T = TypeVar("T")

THREADS = 16  # they wait for the disk, or the network behind it, more than they compute
AT_A_TIME = 1024  # files handed to the threads at once
SOON = 2.0  # seconds; what is done by then shows no bar


def thread_map(
    read: Callable[[str, int | None, int], T], entries: pa.Table, doing: str
) -> Iterator[T]:
    """`read(uri, offset, size)` of each entry, in their order.

    `doing` stands at the bar, which appears on stderr once this has taken two seconds.
    """
    started, done = time.monotonic(), 0
    with ThreadPoolExecutor(THREADS, "sweep") as threads, ExitStack() as shown:
        advance: Callable[[int], None] | None = None
        for batch in entries.select(["uri", "offset", "size"]).to_batches(AT_A_TIME):
            yield from threads.map(read, *(column.to_pylist() for column in batch.columns))
            done += len(batch)
            if advance is not None:
                advance(len(batch))
            elif time.monotonic() > started + SOON:
                advance = _bar(shown, doing, len(entries))
                advance(done)


def _bar(shown: ExitStack, doing: str, total: int) -> Callable[[int], None]:
    progress = shown.enter_context(progress_bar("image"))
    bar = progress.add_task(doing, total=total, note="")
    return lambda count: progress.advance(bar, count)
