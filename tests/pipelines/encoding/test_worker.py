"""EncodeWorker: rows independent of each other, pieces that outlast it, two tasks at once."""

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
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import Tensor

import ops.disk
from ops import transient_errors
from ops.device_memory import DeviceMemoryError
from ops.disk_errors import DiskError
from ops.images import Transform
from ops.transient_errors import TransientError
from pipelines.encoding import batches as image_batches
from pipelines.encoding import worker as encode_task
from pipelines.encoding.worker import EncodeWorker, quarantine
from pipelines.inputs.reading import read_bytes
from pipelines.jobs.queue import Done, Piece
from pipelines.jobs.run import run_tasks
from pipelines.planning.plan import Plan, Task, read_plan
from pipelines.store.commit import read_part
from pipelines.store.layout import index_path
from pipelines.store.partial import read_partial_shards
from tests.encode_run import EncodeRun, everything

TIMEOUT = 60  # seconds; far more than anything here takes


class Planned:
    """A store of ten images in uncommitted tasks of six and four rows, batches of four."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.expected = everything(root)
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
    monkeypatch.setattr(encode_task, "KEEP_SECONDS", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the image files that are read."""
    names: list[str] = []

    def read(uri: str, offset: int | None, size: int, etag: str | None = None) -> bytes:
        names.append(Path(uri).name)
        return read_bytes(uri, offset, size)

    monkeypatch.setattr(image_batches, "read_bytes", read)
    return names


def watch_encode(worker: EncodeWorker, before: Callable[[int], None]) -> None:
    """Call `before` with the running number of each batch, in the thread that encodes it."""
    encode, numbers = worker.tokenizer.encode, iter(range(1000))

    def watched(pixels: Tensor, **options: bool) -> Tensor:
        before(next(numbers))
        return encode(pixels, **options)

    worker.tokenizer.encode = watched  # type: ignore[method-assign]


# --- pieces


def piece_of(task: Task, first: int, end: int) -> Piece[Task]:
    return Piece(task=task, first=first, end=end, commits=False)


def whole(task: Task) -> Piece[Task]:
    return Piece(task=task, first=0, end=task.num_rows)


def test_task_whose_pieces_are_done_is_only_committed(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    task = planned.tasks[0]
    for first, end in ((3, 6), (0, 1), (1, 3)):
        assert worker.run(piece_of(task, first, end)) == Done(end - first, 0)
    assert not index_path(planned.root, task.grid, task.number).exists()
    assert len(reads) == len(set(reads)) == 6
    del reads[:]
    assert worker.run(whole(task)) == Done(6, 0)
    assert reads == []
    worker.run(whole(planned.tasks[1]))
    assert everything(planned.root) == planned.expected


@pytest.mark.usefixtures("keep_every_batch")
def test_kept_rows_are_not_encoded_again(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    def fail_later(number: int) -> None:
        if number == 1:
            raise RuntimeError("it dies here")

    watch_encode(worker, fail_later)
    with pytest.raises(RuntimeError, match="it dies here"):
        worker.run(whole(planned.tasks[0]))
    (piece,) = read_partial_shards(planned.root, planned.grid, 0)
    assert (piece.first, len(piece.lines)) == (0, 4)
    del reads[:]
    other = EncodeWorker(planned.root)
    assert other.run(whole(planned.tasks[0])) == Done(6, 0)
    assert len(reads) == 2
    other.run(whole(planned.tasks[1]))
    assert everything(planned.root) == planned.expected


def test_committed_task_is_not_encoded_again(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    assert worker.run(whole(planned.tasks[0])) == worker.run(whole(planned.tasks[0])) == Done(6, 0)
    assert len(reads) == 6


def test_quarantined_row_is_the_only_one_without_codes(
    planned: Planned, worker: EncodeWorker, reads: list[str]
) -> None:
    task = planned.tasks[0]
    assert quarantine(planned.root, planned.plan, piece_of(task, 2, 3)) == Done(1, 1)
    assert worker.run(whole(task)) == Done(6, 1)
    assert len(reads) == 5
    part = planned.part(0)
    assert part["status"] == ["ok", "ok", "crashed", "ok", "ok", "ok"]
    assert part["error"][2] == "the process that encoded it died every time"
    assert (part["content"][2], part["width"][2], part["height"][2]) == (None, None, None)
    shard = f"{planned.grid.join(('g', '/image/c/0/0/0'))}"
    codes = np.frombuffer((planned.root / shard).read_bytes(), "<u2")
    expected = np.frombuffer(planned.expected[shard], "<u2")
    per_row = np.prod([int(side) for side in planned.grid.split("x")])
    differs = (codes != expected).nonzero()[0]
    assert set(differs[: 6 * per_row] // per_row) >= {2}
    assert (codes[2 * per_row : 3 * per_row] == 65535).all()
    rows = [0, 1, 3, 4, 5]
    here, there = (c[: 6 * per_row].reshape(6, per_row)[rows] for c in (codes, expected))
    np.testing.assert_array_equal(here, there)


class Poisoned(EncodeWorker):
    """Dies when it reads a file called poison, as by an image that crashes its decoder."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)

        def read(uri: str, offset: int | None, size: int, etag: str | None = None) -> bytes:
            if "poison" in uri:
                os.kill(os.getpid(), signal.SIGKILL)
            return read_bytes(uri, offset, size)

        image_batches.read_bytes = read


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_only_the_image_that_kills_its_workers_is_given_up(
    run: EncodeRun, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray cannot import this file
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    (folder / "lake" / "05.jpg").rename(folder / "lake" / "05 poison.jpg")
    assert run(folder, rows_per_task=2) == 0
    expected = {row["key"]: row["codes"] for row in run.store() if "poison" not in row["key"]}
    assert len(expected) == 9
    shutil.rmtree(run.out)

    monkeypatch.setattr("pipelines.encoding.job.EncodeWorker", Poisoned)
    # Each death costs the start of a worker: one blames a task, as three do otherwise.
    monkeypatch.setattr("pipelines.encoding.job.run_tasks", partial(run_tasks, attempts=1))
    assert run(folder, workers=2, rows_per_task=2) == 0, run.errors
    store = run.store()
    assert store.failed.select(["key", "status"]).to_pylist() == [
        {"key": "lake/05 poison.jpg", "status": "crashed"}
    ]
    codes = {row["key"]: row["codes"] for row in store}
    assert codes.keys() == expected.keys()
    for key in codes:
        np.testing.assert_array_equal(codes[key], expected[key])
    before = everything(run.out)
    assert run(folder, workers=2, rows_per_task=2) == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == before


@pytest.mark.ray
@pytest.mark.slow
def test_workers_killed_for_memory_end_the_run_with_a_message(
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


# --- two tasks at once


def together(worker: EncodeWorker, planned: Planned) -> list[Done]:
    with ThreadPoolExecutor(2) as threads:
        return [
            f.result(TIMEOUT) for f in [threads.submit(worker.run, whole(t)) for t in planned.tasks]
        ]


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
    assert everything(planned.root) == planned.expected


def test_one_task_at_a_time_submits_its_batches(planned: Planned, worker: EncodeWorker) -> None:
    begun: list[int] = []
    begin = worker._batches.encode

    def encode(reading: Any) -> Any:
        begun.append(threading.get_ident())
        return begin(reading)

    worker._batches.encode = encode  # type: ignore[method-assign]
    together(worker, planned)
    assert len(begun) == 3  # two batches of one task, one of the other
    assert begun[0] == begun[1] or begun[1] == begun[2]


def test_progress_counts_rows_of_uncommitted_tasks(
    planned: Planned, worker: EncodeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    watch_encode(worker, lambda number: seen.append(worker.progress()))
    quarantine(planned.root, planned.plan, piece_of(planned.tasks[0], 0, 1))
    worker.run(whole(planned.tasks[0]))
    assert seen[0] == Done(1, 1)
    assert worker.progress() == Done(0, 0)


def test_no_batch_begins_after_stop(planned: Planned, worker: EncodeWorker) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    numbers = []

    def wait(number: int) -> None:
        numbers.append(number)
        begun.set()
        may_go_on.wait(TIMEOUT)

    watch_encode(worker, wait)
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(worker.run, whole(planned.tasks[0]))]  # two batches
        assert begun.wait(TIMEOUT)
        running.append(threads.submit(worker.run, whole(planned.tasks[1])))
        worker.stop()
        may_go_on.set()
    assert all(future.exception() is not None for future in running)
    assert numbers == [0]
    assert not (planned.root / "_index").exists()


@pytest.mark.parametrize("decoders", [1, 5])
def test_the_number_of_decoding_threads_changes_no_byte(planned: Planned, decoders: int) -> None:
    worker = EncodeWorker(planned.root, decoders=decoders)
    for task in planned.tasks:
        worker.run(whole(task))
    worker.stop()
    assert everything(planned.root) == planned.expected


def test_three_tasks_at_once_give_the_same_bytes(run: EncodeRun, photographs: Path) -> None:
    assert run(photographs, rows_per_task=4) == 0
    planned = Planned(run.out)
    worker = EncodeWorker(planned.root)
    assert len(planned.tasks) == 3
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda task: worker.run(whole(task)), planned.tasks))
    worker.stop()
    assert everything(planned.root) == planned.expected


# --- a GPU's memory


def test_a_lack_of_a_gpus_memory_is_raised_and_recorded_for_no_row(
    planned: Planned, worker: EncodeWorker
) -> None:
    def full(number: int) -> None:
        if number == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has")

    watch_encode(worker, full)
    with pytest.raises(DeviceMemoryError, match=r"out of memory\. .* smaller --batch-size"):
        worker.run(whole(planned.tasks[0]))
    assert not index_path(planned.root, planned.grid, 0).exists()
    assert worker.run(whole(planned.tasks[0])) == Done(6, 0)  # as another attempt of the job
    worker.run(whole(planned.tasks[1]))
    assert everything(planned.root) == planned.expected


def test_a_lack_of_a_gpus_memory_in_a_decoder_is_no_fault_of_the_image(
    planned: Planned, worker: EncodeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient_errors, "WAITS", (0.0,))

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(Transform, "read", full)
    with pytest.raises(TransientError, match="cannot be read now, after 2 tries: CUDA out of"):
        worker.run(whole(planned.tasks[0]))
    assert not index_path(planned.root, planned.grid, 0).exists()


# --- disk errors


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EROFS, "Allow writing there"),
        (errno.EACCES, "Allow writing there"),
        (errno.EIO, "Check the disk"),
    ],
)
@pytest.mark.parametrize("work", ["task", "piece"])
def test_disk_error_is_reported_with_its_remedy(
    planned: Planned, worker: EncodeWorker, monkeypatch: pytest.MonkeyPatch,
    number: int, remedy: str, work: str,
) -> None:  # fmt: skip
    class Refusing(ops.disk.Disk):
        def create(self, path: Path) -> BinaryIO:
            raise OSError(number, "the system's message", str(path))

    monkeypatch.setattr(ops.disk, "disk", Refusing())
    task = planned.tasks[0]
    with pytest.raises(
        DiskError, match=rf"codes\.zarr/_staging/.*: the system's message. {remedy}"
    ):
        worker.run(whole(task) if work == "task" else piece_of(task, 0, 1))
    assert worker.progress() == Done(0, 0)
