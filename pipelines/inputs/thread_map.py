"""Reading something from each of many files on a pool of threads, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import pyarrow as pa

from pipelines.console import progress_bar

T = TypeVar("T")

THREADS = 16  # they wait for disk or network more than they compute
BATCH = 1024  # files submitted to the threads at once
BAR_AFTER = 2.0  # seconds; work done by then shows no bar


def thread_map(
    read: Callable[[str, int | None, int], T], entries: pa.Table, description: str
) -> Iterator[T]:
    """`read(uri, offset, size)` for each entry of a table with these columns, in order.

    `description` labels the progress bar, which appears on stderr after two seconds.
    """
    started, done = time.monotonic(), 0
    with ThreadPoolExecutor(THREADS, "thread_map") as threads, ExitStack() as shown:
        advance: Callable[[int], None] | None = None
        for batch in entries.select(["uri", "offset", "size"]).to_batches(BATCH):
            yield from threads.map(read, *(column.to_pylist() for column in batch.columns))
            done += len(batch)
            if advance is not None:
                advance(len(batch))
            elif time.monotonic() > started + BAR_AFTER:
                advance = _bar(shown, description, len(entries))
                advance(done)


def _bar(shown: ExitStack, description: str, total: int) -> Callable[[int], None]:
    progress = shown.enter_context(progress_bar("image"))
    bar = progress.add_task(description, total=total, note="")
    return lambda count: progress.advance(bar, count)
