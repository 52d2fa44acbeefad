"""Reading something from each of many files on a pool of threads, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from pipelines.console import progress_bar

T = TypeVar("T")

THREADS = 16  # they wait for disk or network more than they compute
BATCH = 1024  # files submitted to the threads at once
BAR_AFTER = 2.0  # seconds; work done by then shows no bar


class Bar(NamedTuple):
    """A progress bar: its label, and how many of which unit there are."""

    description: str
    unit: str
    total: int


def thread_map(
    read: Callable[[str, int | None, int], T], entries: pa.Table, description: str
) -> Iterator[T]:
    """`read(uri, offset, size)` for each entry of a table with these columns, in order.

    `description` labels the progress bar, which appears on stderr after two seconds.
    """
    batches = entries.select(["uri", "offset", "size"]).to_batches(BATCH)
    rows = (row for batch in batches for row in zip(*map(_values, batch.columns), strict=True))
    return map_in_threads(read, rows, THREADS, Bar(description, "image", len(entries)))


def _values(column: pa.Array) -> list[Any]:
    return list(column.to_pylist())


def map_in_threads(
    read: Callable[..., T],
    arguments: Iterable[tuple[Any, ...]],
    num_threads: int,
    bar: Bar | None = None,
) -> Iterator[T]:
    """`read` of each tuple of arguments, in order, on `num_threads` threads.

    `bar` appears on stderr after two seconds.
    """
    started, done, rest = time.monotonic(), 0, iter(arguments)
    with ThreadPoolExecutor(num_threads, "thread_map") as threads, ExitStack() as shown:
        advance: Callable[[int], None] | None = None
        while batch := list(islice(rest, BATCH)):
            for result in threads.map(read, *zip(*batch, strict=True)):
                yield result
                done += 1
                if advance is not None:
                    advance(1)
                elif bar is not None and time.monotonic() > started + BAR_AFTER:
                    advance = _show(shown, bar)
                    advance(done)


def _show(shown: ExitStack, bar: Bar) -> Callable[[int], None]:
    progress = shown.enter_context(progress_bar(bar.unit))
    task = progress.add_task(bar.description, total=bar.total, note="")
    return lambda count: progress.advance(task, count)
