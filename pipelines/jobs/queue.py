"""TaskQueue: which task runs next, and what follows from a worker's death; without workers or Ray.

A worker that dies while it runs several tasks does not show which of them killed it: each becomes
a suspect, and suspects run alone. A suspect that kills again is split until the row that kills is
alone, and only that is given up. Deaths count only while other work succeeds, so that a machine in
trouble costs time and no data. A worker that makes no progress is killed, which is a death like any
other; one that is lost with its node says nothing about its tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from ops.config import UserError
from ops.transient_errors import TransientError

T = TypeVar("T")

# So many deaths a worker in a row, without a success, are not caused by any task. Halving the
# largest task (65,536 rows) down to one row that kills takes 16, after 4 attempts at the whole.
MAX_DEATHS = 24
# A task may lose its worker so many times to a node that ends before that counts as deaths: spot
# nodes come and go for days, but an image that uses up the memory of a node must not do so forever.
MAX_LOSSES = 50


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
    """A task that failed every attempt, for other reasons than its data."""


def job_error(what: str, why: str) -> JobError:
    """The error of `what` happened; of a traceback, `why` is its last line, and all is a note."""
    lines = why.strip().splitlines() or [""]
    error = JobError(f"{what}; the last time: {lines[-1]}")
    if len(lines) > 1:
        error.add_note(why.strip())
    return error


def is_final(error: BaseException | None) -> bool:
    """Whether an exception of a worker ends the run, since another attempt would raise it again."""
    return isinstance(error, UserError) and not isinstance(error, TransientError)


@dataclass(eq=False, slots=True)
class Unit(Generic[T]):
    """A task, or a piece of one that killed its workers; compared by identity."""

    work: T
    whole: Unit[T] | None = None  # of a piece: the task it was split from
    suspect: bool = False  # runs alone in its worker
    deaths: int = 0  # of workers, that count against it
    errors: int = 0  # exceptions it raised
    died_at: int = -1  # the run's number of successes when it last killed a worker
    stalled: bool = False  # the last worker that died of it had made no progress
    losses: int = 0  # of workers with their nodes; of a task and its pieces together
    pieces_left: int = 0
    isolated: bool = False  # all its pieces are done, the row that kills given up


class TaskQueue(Generic[T]):
    """Tasks, each to be run until it has one result; `left` counts those without.

    `split` cuts a task or a piece into smaller pieces, and returns none for a single row. Without
    it a task that kills `attempts` workers ends the run by JobError, as one that raises `attempts`
    times always does. `proven`: similar tasks succeeded before this run, so all that are left may
    be ones that kill.
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
        self._max_deaths = MAX_DEATHS * workers

    def take(self, held: Sequence[Unit[T]]) -> Unit[T] | None:
        """The unit that a worker running `held` begins next; None where it must not begin one."""
        if held:
            # While a suspect is due, workers finish what they run: only an idle one may take it.
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
        """Note that `unit` has a result; returns whether it is a task's and not a piece's."""
        self._running.discard(unit)
        self._successes += 1
        self._deaths_in_a_row = 0
        if unit.whole is not None:
            self._piece_settled(unit.whole)
            return False
        self.left -= 1
        return True

    def raised(self, unit: Unit[T], why: str) -> None:
        """Note that `unit` raised an exception; raises JobError after the last attempt."""
        self._running.discard(unit)
        unit.errors += 1
        if unit.errors >= self._attempts:
            raise self._failure(unit, unit.errors, why)
        (self._suspects if unit.suspect else self._fresh).append(unit)

    def lost(self, held: Sequence[Unit[T]], why: str) -> Unit[T] | None:
        """Note that a worker running `held` was lost with its node, or is out of reach.

        That is no death of theirs, and they run again first. After MAX_LOSSES of one task it is;
        then the return value is that of died().
        """
        wholes = {unit if unit.whole is None else unit.whole for unit in held}
        for whole in wholes:
            whole.losses += 1
        if any(whole.losses > MAX_LOSSES for whole in wholes):
            return self.died(held, why)
        self._running.difference_update(held)
        for unit in reversed(held):
            (self._suspects if unit.suspect else self._fresh).appendleft(unit)
        return None

    def died(self, held: Sequence[Unit[T]], why: str, *, stalled: bool = False) -> Unit[T] | None:
        """Note that a worker died running `held`, or was killed since they made no progress.

        Returns a unit to give up and settle, if any.
        """
        self._running.difference_update(held)
        for unit in held:
            unit.stalled = stalled
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= self._max_deaths:
            died = f"Workers died {self._deaths_in_a_row} times in a row, whatever they ran"
            raise job_error(died, why)
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
        """Count a death against a unit that ran alone; returns the unit if it is to be given up."""
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
            raise job_error("Workers die on every task they are given", why)
        self._suspects.append(unit)
        return None

    def _count_death(self, unit: Unit[T]) -> None:
        # It counts if something succeeded since this unit's last one, or nothing else could.
        if self._promising(unit) or not any(map(self._promising, self._others())):
            unit.deaths += 1
        unit.suspect = True
        unit.died_at = self._successes

    def _cut(self, unit: Unit[T]) -> bool:
        """Replace `unit` by its pieces; False where it cannot be split."""
        pieces = self._split(unit.work) if self._split is not None else ()
        whole = unit if unit.whole is None else unit.whole
        if not pieces:
            return False
        whole.pieces_left += len(pieces) - (unit is not whole)
        self._suspects.extendleft(Unit(piece, whole, suspect=True) for piece in reversed(pieces))
        return True

    def _piece_settled(self, whole: Unit[T]) -> None:
        """Count a piece of a task as done; after the last, the task itself runs again, alone."""
        whole.pieces_left = max(0, whole.pieces_left - 1)
        if not whole.pieces_left:
            whole.isolated = True
            whole.deaths, whole.died_at = 0, -1
            self._suspects.appendleft(whole)

    def _due(self) -> Unit[T] | None:
        return next((unit for unit in self._suspects if self._promising(unit)), None)

    def _promising(self, unit: Unit[T]) -> bool:
        """Whether something succeeded since `unit` last killed a worker, or it never did."""
        return unit.died_at < self._successes

    def _others(self) -> Iterator[Unit[T]]:
        """All units that wait or run, except one that the caller has taken out."""
        yield from self._fresh
        yield from self._running
        yield from self._suspects

    def _failure(self, unit: Unit[T], times: int, why: str) -> JobError:
        return job_error(f"Task {unit.work} failed {times} times", why)


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
