"""TaskQueue under random deaths: every result once, and only rows that kill are given up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import hypothesis
import pytest
from hypothesis import strategies as st

from pipelines.jobs.queue import MAX_LOSSES, JobError, Piece, TaskQueue, Unit, split_work

Span = tuple[int, int]  # rows first to end, as work


def halves(span: Span) -> list[Span]:
    first, end = span
    middle = (first + end) // 2
    return [(first, middle), (middle, end)] if end - first > 1 else []


@dataclass
class Simulation:
    """Workers that die of poison rows and at random; hypothesis draws what happens next."""

    poison: frozenset[int]
    data: st.DataObject
    workers: int
    accidents: int  # deaths that no row causes
    losses: int  # of nodes
    depth: int = 2
    held: list[list[Unit[Span]]] = field(default_factory=list)
    results: Counter[Span] = field(default_factory=Counter)
    given_up: list[Span] = field(default_factory=list)

    def run(self, queue: TaskQueue[Span]) -> None:
        self.held = [[] for _ in range(self.workers)]
        for _ in range(10_000):
            if not queue.left:
                return
            self._hand_out(queue)
            busy = [held for held in self.held if held]
            assert busy, "work is left, but no worker has any"
            held = self.data.draw(st.sampled_from(busy), "worker")
            self._step(queue, held)
        raise AssertionError("the queue does not end")

    def _hand_out(self, queue: TaskQueue[Span]) -> None:
        for depth in range(self.depth):
            for held in self.held:
                if len(held) == depth and (unit := queue.take(held)) is not None:
                    held.append(unit)
                    alone = len(held) == 1
                    assert alone or not any(unit.suspect for unit in held)

    def _step(self, queue: TaskQueue[Span], held: list[Unit[Span]]) -> None:
        if self.losses > 0 and self.data.draw(st.booleans(), "loss"):
            self.losses -= 1
            lost, held[:] = list(held), []
            assert queue.lost(lost, "its node has died") is None
            return
        accident = self.accidents > 0 and self.data.draw(st.booleans(), "accident")
        unit = self.data.draw(st.sampled_from(held), "unit")
        if accident or self._kills(unit.work):
            self.accidents -= accident
            dead, held[:] = list(held), []
            unit_given_up = queue.died(dead, "it died")
            if unit_given_up is not None:
                assert dead == [unit_given_up]
                self.given_up.append(unit_given_up.work)
                queue.settled(unit_given_up)
            return
        held.remove(unit)
        if queue.succeeded(unit):
            self.results[unit.work] += 1

    def _kills(self, span: Span) -> bool:
        gone = {first for first, _ in self.given_up}
        return any(row in self.poison and row not in gone for row in range(*span))


@hypothesis.given(
    st.data(),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.sets(st.integers(0, 40), max_size=4),
    st.integers(1, 3),
    st.integers(0, 2),  # fewer than attempts: no row dies so often at random
    st.integers(0, 9),
)
def test_every_result_comes_once_and_only_poison_is_given_up(
    data: st.DataObject,
    sizes: list[int],
    poison: set[int],
    workers: int,
    accidents: int,
    losses: int,
) -> None:
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    spans = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    present = frozenset(row for row in poison if row < ends[-1])
    hypothesis.assume(len(present) < ends[-1])  # some row succeeds
    simulation = Simulation(present, data, workers, accidents, losses)
    simulation.run(TaskQueue(spans, attempts=3, split=halves, workers=workers))
    assert simulation.results == Counter(spans)
    assert sorted(simulation.given_up) == [(row, row + 1) for row in sorted(present)]


def die_alone(queue: TaskQueue[Span], times: int) -> list[Span]:
    """Take the next unit and let it kill its worker, so many times; the work taken."""
    begun = []
    for _ in range(times):
        unit = queue.take([])
        assert unit is not None
        begun.append(unit.work)
        queue.died([unit], "it died")
    return begun


def test_workers_that_die_on_every_task_give_up_no_row() -> None:
    queue: TaskQueue[Span] = TaskQueue([(0, 1), (1, 2)], split=halves)
    with pytest.raises(JobError, match=r"die on every task.* the last time: it died"):
        die_alone(queue, 100)


def test_many_deaths_in_a_row_end_the_run_before_rows_are_given_up() -> None:
    tasks = [(n * 1024, (n + 1) * 1024) for n in range(10)]
    queue: TaskQueue[Span] = TaskQueue(tasks, split=halves)
    first = queue.take([])
    assert first is not None
    assert queue.succeeded(first)
    with pytest.raises(JobError, match="24 times in a row"):
        die_alone(queue, 100)


def test_last_task_that_kills_is_given_up_if_others_succeeded_before() -> None:
    queue: TaskQueue[Span] = TaskQueue([(0, 1)], split=halves, proven=True)
    for attempt in range(3):
        unit = take(queue)
        given_up = queue.died([unit], "it died")
        assert given_up is (unit if attempt == 2 else None)
    with pytest.raises(JobError, match="die on every task"):
        die_alone(TaskQueue([(0, 1)], split=halves), 3)


def take(queue: TaskQueue[Span], *held: Unit[Span]) -> Unit[Span]:
    unit = queue.take(held)
    assert unit is not None
    return unit


def test_a_suspect_is_tried_again_after_another_task_succeeded() -> None:
    queue: TaskQueue[Span] = TaskQueue([(n, n + 1) for n in range(4)], split=halves)
    killer = take(queue)
    queue.died([killer], "it died")
    other = take(queue)
    assert other.work == (1, 2)
    another = take(queue, other)  # no suspect is due, so a worker may run two
    queue.succeeded(other)
    assert queue.take([another]) is None, "a suspect is due: no worker begins a second task"
    assert take(queue) is killer


def test_a_death_counts_only_while_others_succeed() -> None:
    queue: TaskQueue[Span] = TaskQueue([(n, n + 1) for n in range(3)], attempts=2, split=halves)
    queue.succeeded(take(queue))
    killer, other = take(queue), take(queue)
    for _ in range(5):  # without a success since the death before
        assert queue.died([killer], "it died") is None
        assert take(queue) is killer
    queue.succeeded(other)
    assert queue.died([killer], "it died") is killer


def test_a_task_whose_row_is_given_up_runs_alone() -> None:
    queue: TaskQueue[Span] = TaskQueue([(n, n + 1) for n in range(4)], attempts=1, split=halves)
    queue.succeeded(take(queue))
    killer, other = take(queue), take(queue)
    assert queue.died([killer], "it died") is killer
    queue.settled(killer)
    assert queue.take([other]) is None
    assert take(queue) is killer
    assert queue.take([killer]) is None


def test_without_split_a_task_that_kills_ends_the_run() -> None:
    queue: TaskQueue[Span] = TaskQueue([(0, 9)], attempts=2)
    with pytest.raises(JobError, match=r"Task \(0, 9\) failed 2 times; the last time: it died"):
        die_alone(queue, 2)


def test_a_task_that_still_kills_without_its_row_ends_the_run() -> None:
    queue: TaskQueue[Span] = TaskQueue([(0, 2), (2, 3)], attempts=1, split=halves)
    assert die_alone(queue, 2) == [(0, 2), (0, 1)]
    while (unit := queue.take([])) is not None and unit.whole is not None:
        if unit.work == (1, 2):
            queue.succeeded(unit)
        else:
            assert queue.died([unit], "it died") is unit
            queue.settled(unit)
    assert unit is not None
    assert unit.isolated
    with pytest.raises(JobError, match=r"Task \(0, 2\) failed 1 times"):
        queue.died([unit], "it died")


def test_exceptions_and_deaths_are_counted_separately() -> None:
    queue: TaskQueue[Span] = TaskQueue([(0, 9)], split=halves)
    for _ in range(2):
        unit = queue.take([])
        assert unit is not None
        queue.raised(unit, "trouble")
        queue.died([queue.take([]) or unit], "it died")
    unit = queue.take([])
    assert unit is not None
    with pytest.raises(JobError, match="failed 3 times; the last time: trouble"):
        queue.raised(unit, "trouble")


def test_a_task_of_a_lost_node_runs_next_and_with_others() -> None:
    queue: TaskQueue[Span] = TaskQueue([(n, n + 1) for n in range(4)], split=halves)
    first, second = take(queue), take(queue)
    assert queue.lost([first, second], "its node has died") is None
    assert take(queue) is first
    assert take(queue, first) is second


def test_a_task_that_loses_every_node_ends_the_run() -> None:
    queue: TaskQueue[Span] = TaskQueue([(0, 4)], attempts=2, split=halves)
    for _ in range(MAX_LOSSES):
        queue.lost([take(queue)], "its node has died")

    def lose_all() -> None:
        for _ in range(20):
            queue.lost([take(queue)], "its node has died")

    # From now on they count as deaths, those of its pieces too.
    with pytest.raises(JobError, match=r"die on every task.*its node has died"):
        lose_all()


def test_a_stall_is_a_death_and_the_last_one_decides_the_reason() -> None:
    for stalls in ([False, True], [True, False]):
        queue: TaskQueue[Span] = TaskQueue([(0, 1)], attempts=2, split=halves, proven=True)
        for stalled in stalls:
            unit = take(queue)
            given_up = queue.died([unit], "it died", stalled=stalled)
        assert given_up is unit
        assert unit.stalled == stalls[-1]


# --- splitting


@hypothesis.given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 9))
def test_splitting_ends_at_single_rows(first: int, rows: int, batch_size: int) -> None:
    waiting, single = [Piece(task=3, first=first, end=first + rows)], []
    while waiting:
        piece = waiting.pop()
        pieces = split_work(piece, batch_size)
        assert not any(each.commits for each in pieces)
        waiting += pieces
        if not pieces:
            single.append(piece)
            continue
        left, right = pieces
        assert left.task == right.task == 3
        assert (left.first, left.end, right.end) == (piece.first, right.first, piece.end)
        same_batch = piece.first // batch_size == (piece.end - 1) // batch_size
        assert same_batch or left.end % batch_size == 0
    assert sorted(piece.first for piece in single) == list(range(first, first + rows))
    assert all(piece.end == piece.first + 1 for piece in single)


def test_a_task_is_split_between_its_batches() -> None:
    pieces = split_work(Piece(task="a", first=0, end=10), 4)
    assert [(piece.first, piece.end) for piece in pieces] == [(0, 8), (8, 10)]
    assert split_work(Piece(task="a", first=0, end=1), 4) == []
