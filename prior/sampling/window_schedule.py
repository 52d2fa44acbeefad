"""The forwards of static decoding with a sliding window, computed ahead from the geometry alone.

Each forward of the plain sampler, in which windows read different numbers of tokens, becomes some
reading calls, in which several windows read as many tokens each, and one drawing call, in which
each window reads one more token and draws the code after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ops.windows import Grid, Wavefront, Window
from prior.sampling.kv_cache import WindowCaches
from prior.sampling.sliding_window import steps_of

FEWEST_TOKENS = 8  # a call for fewer takes about as long
MOST_TOKENS = 8192  # of all windows and sequences in a call, which bounds its memory


@dataclass
class CacheSlot:
    """The place of a window's keys and values, in the part of a KVCache."""

    number: int
    length: int = 0


class Read(NamedTuple):
    """Tokens first .. end - 1 of a window, to be read into a slot."""

    slot: int
    window: Window
    first: int
    end: int


class ReadCall(NamedTuple):
    """Reads of at most `tokens` tokens, and at most `windows` of them: a call's fixed shape."""

    reads: list[Read]
    windows: int
    tokens: int


class DrawCall(NamedTuple):
    """For each cell the read of one token, after which the cell's code is drawn."""

    reads: list[Read]
    cells: list[tuple[int, int]]


class Schedule(NamedTuple):
    """All calls for a canvas."""

    calls: list[ReadCall | DrawCall]
    slots: int  # number of cache slots in use


def window_schedule(
    grid: Grid,
    *,
    prefix_length: int,
    parallel_rows: int,
    drawn_at_once: int,
    sequences: int,
    max_caches: int,
    known: list[list[bool]] | None = None,
    flush_every_rows: int | None = None,
) -> Schedule:
    """The schedule with the cells, windows and caches of sample_codes.

    A reading call has at most `drawn_at_once` windows, of `sequences` sequences each.
    """
    calls: list[ReadCall | DrawCall] = []
    made: list[CacheSlot] = []

    def new_slot() -> CacheSlot:
        made.append(CacheSlot(len(made)))
        return made[-1]

    wavefront = Wavefront(grid, parallel_rows, known, flush_every_rows)
    caches = WindowCaches(new_slot, max_caches, wavefront)
    for cells, windows, slots in steps_of(grid, wavefront, caches, flush_every_rows):
        reads = []
        for cell, window, slot in zip(cells, windows, slots, strict=True):
            end = prefix_length + window.offset_of(*cell)
            reads.append(Read(slot.number, window, slot.length, end))
            slot.length = end
        calls.extend(_reading_calls(reads, drawn_at_once, sequences))
        calls.append(DrawCall([read._replace(first=read.end - 1) for read in reads], cells))
    return Schedule(calls, len(made))


def most_rows_at_once(grid: Grid) -> int:
    """How many rows a Wavefront can draw in one step at most, whatever cells are known.

    A row waits until the one above has left the window of its next cell behind.
    """
    rows, column = 0, 0
    while column < grid.columns:
        rows += 1
        window = grid.window_of(0, column)
        column = window.column + window.columns
    return rows


def _reading_calls(reads: Iterable[Read], most_windows: int, sequences: int) -> Iterator[ReadCall]:
    """Calls that read all but the last token of each of `reads`, which are of different windows."""
    open_reads = [read._replace(end=read.end - 1) for read in reads if read.end - read.first > 1]
    while open_reads:
        together: dict[int, list[Read]] = {}
        for read in open_reads:
            together.setdefault(_bucket(read.end - read.first), []).append(read)
        open_reads = []
        for tokens, group in sorted(together.items()):
            most = max(1, min(most_windows, MOST_TOKENS // (tokens * sequences)))
            for start in range(0, len(group), most):
                part = group[start : start + most]
                now = [read._replace(end=min(read.end, read.first + tokens)) for read in part]
                yield ReadCall(now, min(most, _power_of_two(len(part))), tokens)
                open_reads += [
                    read._replace(first=read.first + tokens)
                    for read in part
                    if read.first + tokens < read.end
                ]


def _bucket(count: int) -> int:
    """How many tokens to read at once of `count`: a power of two, of which at most a third is
    padding, unless there are few."""
    larger = max(FEWEST_TOKENS, _power_of_two(count))
    return larger if larger == FEWEST_TOKENS or 3 * count >= 2 * larger else larger // 2


def _power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
