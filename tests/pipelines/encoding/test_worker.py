"""A worker's tasks: rows that know nothing of each other, pieces that outlast it, its turns."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from torch import Tensor

import ops.disk
from pipelines.encoding import batches as image_batches
from pipelines.encoding import worker as encode_task
from pipelines.encoding.worker import Done, EncodeWorker, Piece, quarantine, split_work
from pipelines.inputs.reading import read_bytes
from pipelines.planning.plan import Plan, Task, read_plan
from pipelines.store import StoreError
from pipelines.store.commit import read_part
from pipelines.store.layout import index_path
from pipelines.store.partial import read_partial_shards
from tests.encode_run import EncodeRun, everything

TASK = Task(grid="2x2", number=3, num_rows=10, part=0, group=0)
TIMEOUT = 60  # seconds; far more than anything here takes


class Planned:
    """A store of ten images in tasks of six and four rows, batches of four, none of them done."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.undisturbed = everything(root)
        shutil.rmtree(root / "_index")
        for folder in root.glob("g*/image/c"):
            shutil.rmtree(folder)
        plan = read_plan(root)
        assert plan is not None
        self.plan: Plan = plan
        self.tasks = plan.tasks
        self.grid = plan.tasks[0].grid

    def part(self, task: int) -> dict[str, list[Any]]:
        """The columns of a committed task's index."""
        columns: dict[str, list[Any]] = read_part(self.root, self.grid, task)[0].to_pydict()
        return columns


@pytest.fixture
def planned(run: EncodeRun, photographs: Path) -> Planned:
    assert run(photographs, rows_per_task=6) == 0
    return Planned(run.out)


@pytest.fixture
def worker(planned: Planned) -> Iterator[EncodeWorker]:
    worker = EncodeWorker(planned.root)
    yield worker
    worker.stop()


@pytest.fixture
def keep_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_task, "PARTIAL_SHARD_SECONDS", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the image files that are read from here on."""
    names: list[str] = []

    def read(uri: str, offset: int | None, size: int, etag: str | None = None) -> bytes:
        names.append(Path(uri).name)
        return read_bytes(uri, offset, size)

    monkeypatch.setattr(image_batches, "read_bytes", read)
    return names


def watch_encode(worker: EncodeWorker, before: Callable[[int], None]) -> None:
    """Call `before` with the running number of each batch, in the thread that encodes it."""
    encode, numbers = worker.tokenizer.encode, iter(range(1000))

    def watched(pixels: Tensor) -> Tensor:
        before(next(numbers))
        return encode(pixels)

    worker.tokenizer.encode = watched  # type: ignore[method-assign]


# --- pieces


@hypothesis.given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 9))
def test_halving_comes_down_to_every_row_alone(first: int, rows: int, batch_size: int) -> None:
    waiting, single = [Piece(task=TASK, first=first, end=first + rows)], []
    while waiting:
        piece = waiting.pop()
        halves = split_work(piece, batch_size)
        waiting += halves
        if not halves:
            single.append(piece)
            continue
        left, right = halves
        assert (left.first, left.end, right.end) == (piece.first, right.first, piece.end)
        same_batch = piece.first // batch_size == (piece.end - 1) // batch_size
        assert same_batch or left.end % batch_size == 0
    assert sorted(piece.first for piece in single) == list(range(first, first + rows))
    assert all(piece.end == piece.first + 1 for piece in single)


def test_a_task_is_halved_between_its_batches() -> None:
    assert [(p.first, p.end) for p in split_work(TASK, 4)] == [(0, 8), (8, 10)]
    assert split_work(Task(grid="2x2", number=0, num_rows=1, part=0, group=0), 4) == []


def test_a_task_whose_pieces_are_done_is_only_committed(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    task = planned.tasks[0]
    for first, end in ((3, 6), (0, 1), (1, 3)):
        assert worker.run(Piece(task=task, first=first, end=end)) == Done(end - first, 0)
    assert not index_path(planned.root, task.grid, task.number).exists()
    assert len(reads) == len(set(reads)) == 6
    del reads[:]
    assert worker.run(task) == Done(6, 0)
    assert reads == []
    worker.run(planned.tasks[1])
    assert everything(planned.root) == planned.undisturbed


@pytest.mark.usefixtures("keep_every_batch")
def test_what_was_kept_before_a_worker_died_is_not_done_again(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    def fail_later(number: int) -> None:
        if number == 1:
            raise RuntimeError("here it dies")

    watch_encode(worker, fail_later)
    with pytest.raises(RuntimeError, match="here it dies"):
        worker.run(planned.tasks[0])
    (piece,) = read_partial_shards(planned.root, planned.grid, 0)
    assert (piece.first, len(piece.index)) == (0, 4)
    del reads[:]
    other = EncodeWorker(planned.root)
    assert other.run(planned.tasks[0]) == Done(6, 0)
    assert len(reads) == 2
    other.run(planned.tasks[1])
    assert everything(planned.root) == planned.undisturbed


def test_a_task_that_was_committed_is_not_done_again(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    assert worker.run(planned.tasks[0]) == worker.run(planned.tasks[0]) == Done(6, 0)
    assert len(reads) == 6


def test_a_condemned_row_is_the_only_one_without_codes(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    task = planned.tasks[0]
    assert quarantine(planned.root, planned.plan, Piece(task=task, first=2, end=3)) == Done(1, 1)
    assert worker.run(task) == Done(6, 1)
    assert len(reads) == 5
    part = planned.part(0)
    assert part["status"] == ["ok", "ok", "crashed", "ok", "ok", "ok"]
    assert part["error"][2] == "the process that worked on it died, every time"
    assert (part["content"][2], part["width"][2], part["height"][2]) == (None, None, None)
    shard = f"{planned.grid.join(('g', '/image/c/0/0/0'))}"
    codes = np.frombuffer((planned.root / shard).read_bytes(), "<u2")
    expected = np.frombuffer(planned.undisturbed[shard], "<u2")
    per_row = np.prod([int(side) for side in planned.grid.split("x")])
    differs = (codes != expected).nonzero()[0]
    assert set(differs[: 6 * per_row] // per_row) >= {2}
    assert (codes[2 * per_row : 3 * per_row] == 65535).all()
    rows = [0, 1, 3, 4, 5]
    here, there = (c[: 6 * per_row].reshape(6, per_row)[rows] for c in (codes, expected))
    np.testing.assert_array_equal(here, there)


class Poisoned(EncodeWorker):
    """Dies of a file called poison, as of a picture that crashes its decoder."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)

        def read(uri: str, offset: int | None, size: int, etag: str | None = None) -> bytes:
            if "poison" in uri:
                os.kill(os.getpid(), signal.SIGKILL)
            return read_bytes(uri, offset, size)

        image_batches.read_bytes = read


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_an_image_that_kills_its_workers_ends_in_the_ledger_alone(
    run: EncodeRun, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray cannot import this file
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    (folder / "lake" / "05.jpg").rename(folder / "lake" / "05 poison.jpg")
    assert run(folder) == 0
    expected = {row["key"]: row["codes"] for row in run.store() if "poison" not in row["key"]}
    assert len(expected) == 9
    shutil.rmtree(run.out)

    monkeypatch.setattr("pipelines.encode.EncodeWorker", Poisoned)
    assert run(folder, workers=2) == 0, run.errors
    store = run.store()
    assert store.failed.select(["key", "status"]).to_pylist() == [
        {"key": "lake/05 poison.jpg", "status": "crashed"}
    ]
    codes = {row["key"]: row["codes"] for row in store}
    assert codes.keys() == expected.keys()
    for key in codes:
        np.testing.assert_array_equal(codes[key], expected[key])
    before = everything(run.out)
    assert run(folder, workers=2) == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == before


@pytest.mark.ray
@pytest.mark.slow
def test_workers_killed_for_memory_end_the_run_in_words_that_say_so(
    run: EncodeRun, photographs: Path
) -> None:
    command = [sys.executable, "-m", "pipelines.encode", *run.flags(photographs, workers=1)]
    full = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    done = subprocess.run(command, env={**os.environ, **full}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the machine ran out of memory and the worker was killed for it" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(photographs) == 0
    assert len(run.store()) == 10


# --- turns


def together(worker: EncodeWorker, planned: Planned) -> list[Done]:
    with ThreadPoolExecutor(2) as threads:
        return [f.result(TIMEOUT) for f in [threads.submit(worker.run, t) for t in planned.tasks]]


def test_one_task_commits_while_the_next_is_encoded(
    planned: Planned, worker: EncodeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = encode_task.commit_task
    encoded: dict[int, threading.Event] = {task.number: threading.Event() for task in planned.tasks}
    waited = []

    def commit_late(root: Path, grid: str, task: int, *others: Any, **named: Any) -> bool:
        encoded[task].set()  # a task is committed once it is encoded
        waited.append(all(event.wait(TIMEOUT) for event in encoded.values()))
        return commit(root, grid, task, *others, **named)

    monkeypatch.setattr(encode_task, "commit_task", commit_late)
    assert sorted(together(worker, planned)) == [Done(4, 0), Done(6, 0)]
    assert waited == [True, True]
    assert everything(planned.root) == planned.undisturbed


def test_one_task_at_a_time_has_its_turn(planned: Planned, worker: EncodeWorker) -> None:
    begun: list[int] = []
    begin = worker._batches.encode

    def encode(reading: Any) -> Any:
        begun.append(threading.get_ident())
        return begin(reading)

    worker._batches.encode = encode  # type: ignore[method-assign]
    together(worker, planned)
    assert len(begun) == 3  # two batches of one task, one of the other
    assert begun[0] == begun[1] or begun[1] == begun[2]


def test_progress_counts_what_is_not_committed(
    planned: Planned, worker: EncodeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    watch_encode(worker, lambda number: seen.append(worker.progress()))
    quarantine(planned.root, planned.plan, Piece(task=planned.tasks[0], first=0, end=1))
    worker.run(planned.tasks[0])
    assert seen[0] == Done(1, 1)
    assert worker.progress() == Done(0, 0)


def test_stop_lets_no_other_batch_begin(planned: Planned, worker: EncodeWorker) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    numbers = []

    def wait(number: int) -> None:
        numbers.append(number)
        begun.set()
        may_go_on.wait(TIMEOUT)

    watch_encode(worker, wait)
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(worker.run, planned.tasks[0])]  # two batches
        assert begun.wait(TIMEOUT)
        running.append(threads.submit(worker.run, planned.tasks[1]))
        worker.stop()
        may_go_on.set()
    assert all(future.exception() is not None for future in running)
    assert numbers == [0]
    assert not (planned.root / "_index").exists()


# --- what the disk refuses


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EROFS, "Allow writing there"),
        (errno.EACCES, "Allow writing there"),
        (errno.EIO, "See to the disk"),
    ],
)
@pytest.mark.parametrize("work", ["task", "piece"])
def test_a_refusing_disk_is_told_with_its_remedy(
    planned: Planned, worker: EncodeWorker, monkeypatch: pytest.MonkeyPatch,
    number: int, remedy: str, work: str,
) -> None:  # fmt: skip
    class Refusing(ops.disk.Disk):
        def create(self, path: Path) -> BinaryIO:
            raise OSError(number, "the system's words", str(path))

    monkeypatch.setattr(ops.disk, "disk", Refusing())
    task = planned.tasks[0]
    with pytest.raises(StoreError, match=rf"codes\.zarr/_staging/.*: the system's words. {remedy}"):
        worker.run(task if work == "task" else Piece(task=task, first=0, end=1))
    assert worker.progress() == Done(0, 0)
