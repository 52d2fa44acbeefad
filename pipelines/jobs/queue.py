"""Which task runs next and what a worker's death means: bookkeeping alone, no worker in sight.

A worker that dies while it is inside several tasks says nothing about which of them killed it:
each becomes a suspect, and suspects run alone. A suspect that goes on killing is split until what
kills stands by itself, and only that is given up. A death counts while other work does well, so
that a machine in trouble costs time and no data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from ops.config import UserError

T = TypeVar("T")

# More deaths in a row than this many a worker, and not one success between, are no task's fault.
# Halving the largest task (65,536 rows) down to one row that kills at once takes 16, and 4 before.
HOPELESS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece(Generic[T]):
    """Rows of a task by place in it, `first` to before `end`: all of them, or some."""

    task: T
    first: int
    end: int
    commits: bool = True  # whether it ends with the task's commit, or only keeps its rows


class Done(NamedTuple):
    """The outcome of some rows."""

    rows: int
    failed: int  # of these rows
    codes: int = 0  # sampled for them, where the worker samples


class JobError(UserError):
    """A task that failed every attempt, for reasons that are not in its data."""


@dataclass(eq=False, slots=True)
class Unit(Generic[T]):
    """A task, or a piece of one that killed its workers; compared by identity."""

    work: T
    whole: Unit[T] | None = None  # the task that a piece is of
    suspect: bool = False  # runs alone in its worker
    deaths: int = 0  # that count against it
    errors: int = 0  # exceptions it raised
    died_at: int = -1  # how many successes the run had when it last killed a worker
    pieces_left: int = 0
    isolated: bool = False  # what killed in it has been given up


class TaskQueue(Generic[T]):
    """Every task's way to its one result; `left` counts those whose result has not come.

    `split` makes smaller pieces of a task or a piece, none of one that is smallest. Without it a
    task that kills `attempts` workers ends the run, as one that raises `attempts` times always
    does: both by JobError. `proven` says that such work was done well before this run, so that what
    is left may all be what kills.
    """

    def __init__(
        self,
        tasks: Sequence[T],
        *,
        attempts: int = 3,
        split: Callable[[T], Sequence[T]] | None = None,
        workers: int = 1,
        proven: bool = False,
    ) -> None:
        self.left = len(tasks)
        self._attempts = attempts
        self._split = split
        self._fresh = deque(Unit(task) for task in tasks)
        self._suspects: deque[Unit[T]] = deque()
        self._running: set[Unit[T]] = set()
        self._successes = int(proven)
        self._deaths_in_a_row = 0
        self._hopeless = HOPELESS * workers

    def take(self, held: Sequence[Unit[T]]) -> Unit[T] | None:
        """What a worker that is inside of `held` begins next; None where it shall not."""
        if held:
            # With a suspect due, workers run empty: only an empty one may take it.
            if held[0].suspect or self._due() is not None or not self._fresh:
                return None
            unit = self._fresh.popleft()
        else:
            waiting = self._suspects if self._due() or not self._fresh else self._fresh
            if not waiting:
                return None
            unit = self._due() or waiting[0]
            waiting.remove(unit)
        self._running.add(unit)
        return unit

    def succeeded(self, unit: Unit[T]) -> bool:
        """Note that `unit` ran to its end; whether its result is a task's and not a piece's."""
        self._running.discard(unit)
        self._successes += 1
        self._deaths_in_a_row = 0
        if unit.whole is not None:
            self._piece_settled(unit.whole)
            return False
        self.left -= 1
        return True

    def raised(self, unit: Unit[T], why: str) -> None:
        """Note that `unit` ended in an exception; it waits for another attempt."""
        self._running.discard(unit)
        unit.errors += 1
        if unit.errors >= self._attempts:
            raise self._failure(unit, unit.errors, why)
        (self._suspects if unit.suspect else self._fresh).append(unit)

    def died(self, held: Sequence[Unit[T]], why: str) -> Unit[T] | None:
        """Note that a worker died inside of `held`; what is to be given up now, then settled."""
        self._running.difference_update(held)
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= self._hopeless:
            raise JobError(
                f"Workers died {self._deaths_in_a_row} times in a row, whatever they did; "
                f"the last time: {why}"
            )
        if len(held) == 1:
            return self._blame(held[0], why)
        for unit in held:
            unit.suspect = True
            self._suspects.append(unit)
        return None

    def settled(self, unit: Unit[T]) -> None:
        """Note that `unit`, which died() named, has been given up."""
        self._piece_settled(unit if unit.whole is None else unit.whole)

    def _blame(self, unit: Unit[T], why: str) -> Unit[T] | None:
        """Count a death against the one that ran alone; `unit` itself when it is to be given up."""
        self._count_death(unit)
        enough = unit.deaths >= self._attempts
        if self._split is None or unit.isolated:
            if enough:
                raise self._failure(unit, unit.deaths, why)
        elif (enough or unit.whole is not None) and self._cut(unit):
            return None
        elif enough and self._successes:
            return unit
        elif enough and all(other.deaths >= self._attempts for other in self._others()):
            raise JobError(f"Workers die on every task they are given; the last time: {why}")
        self._suspects.append(unit)
        return None

    def _count_death(self, unit: Unit[T]) -> None:
        # Fair is a death while others do well: something has succeeded since the last one of this
        # unit, or there is nothing else that could.
        if self._promising(unit) or not any(map(self._promising, self._others())):
            unit.deaths += 1
        unit.suspect = True
        unit.died_at = self._successes

    def _cut(self, unit: Unit[T]) -> bool:
        """Put pieces in the place of `unit`; False where it has none."""
        pieces = self._split(unit.work) if self._split is not None else ()
        whole = unit if unit.whole is None else unit.whole
        if not pieces:
            return False
        whole.pieces_left += len(pieces) - (unit is not whole)
        self._suspects.extendleft(Unit(piece, whole, suspect=True) for piece in reversed(pieces))
        return True

    def _piece_settled(self, whole: Unit[T]) -> None:
        """One piece less of a task; after the last, the task itself runs again, alone."""
        whole.pieces_left = max(0, whole.pieces_left - 1)
        if not whole.pieces_left:
            whole.isolated = True
            whole.deaths, whole.died_at = 0, -1
            self._suspects.appendleft(whole)

    def _due(self) -> Unit[T] | None:
        return next((unit for unit in self._suspects if self._promising(unit)), None)

    def _promising(self, unit: Unit[T]) -> bool:
        """Whether something succeeded since `unit` last killed; true of one that never did."""
        return unit.died_at < self._successes

    def _others(self) -> Iterator[Unit[T]]:
        """All that waits or runs, but for the one a caller has in hand."""
        yield from self._fresh
        yield from self._running
        yield from self._suspects

    def _failure(self, unit: Unit[T], times: int, why: str) -> JobError:
        return JobError(f"Task {unit.work} failed {times} times; the last time: {why}")


def split_work(piece: Piece[T], batch_size: int) -> list[Piece[T]]:
    """The piece in two halves, cut between batches or else inside of one; none of a single row.

    Batches begin at places that are multiples of `batch_size`.
    """
    first, end = piece.first, piece.end
    if end - first == 1:
        return []
    borders = range(-(-(first + 1) // batch_size) * batch_size, end, batch_size)
    middle = borders[len(borders) // 2] if borders else (first + end) // 2
    return [
        Piece(task=piece.task, first=first, end=middle, commits=False),
        Piece(task=piece.task, first=middle, end=end, commits=False),
    ]
