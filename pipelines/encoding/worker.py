"""What one worker does for one task of a track: read, decode, encode, commit.

Batches are cut at fixed places of the task and filled up where an image failed or the task ends,
and each runs on the frozen number of threads. So a row's codes do not depend on how many workers
there are, nor on which ran it, nor on what was killed.
"""

from __future__ import annotations

import contextlib
import errno
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ops.runtime import keep_freed_memory, resolve_device
from pipelines.encoding.batches import BatchEncoder, CodesToCome, Reading
from pipelines.encoding.sources import IMAGE_COLUMNS, Size, source_of
from pipelines.jobs import halves
from pipelines.planning import Plan, Task, read_plan, task_table
from pipelines.store import (
    Line,
    StoreError,
    TaskBuffer,
    commit_task,
    grid_shape,
    index_path,
    publish_task,
    read_part,
    read_partial_shards,
    remove_partial_shards,
    row_form,
    store_root,
    tokenizer_folder,
    write_partial_shard,
)
from tokenizer import load_tokenizer

READ_AHEAD = 2  # batches decoded beyond those that are being encoded
READ_COLUMNS = ["key", "uri", "offset", "size", "etag", "view"]
PARTIAL_SHARD_SECONDS = 30.0  # how much work a kill may cost
CRASHED = Line(None, None, "crashed", "the process that worked on it died, every time", None)
REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room",
    errno.EROFS: "Allow writing there",
    errno.EACCES: "Allow writing there",
    errno.EPERM: "Allow writing there",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows of a task that are done by themselves: places `first` to before `end`."""

    task: Task
    first: int
    end: int


class Done(NamedTuple):
    """What became of some rows."""

    rows: int
    failed: int  # of these rows


def split_work(work: Task | Piece, batch_size: int) -> list[Piece]:
    """Two halves: cut between batches, then inside of one; nothing for a single row."""
    piece = _as_piece(work)
    return [
        Piece(task=piece.task, first=places.start, end=places.stop)
        for places in halves(piece.first, piece.end, batch_size)
    ]


def quarantine(root: Path, plan: Plan, work: Task | Piece) -> Done:
    """Put down, for whoever does the task next, that its one row kills who works on it."""
    piece = _as_piece(work)
    assert piece.end - piece.first == 1, "only what cannot be split is given up"
    buffer = _buffer(root, plan, piece.task)
    buffer.put(piece.first, CRASHED, None)
    _keep(root, piece.task, buffer, piece.first, piece.end)
    return Done(1, 1)


class EncodeWorker:
    """Encodes the tasks of one store, or of the track whose books `root` is; made once a process,
    it loads the tokenizer that is kept there.

    `lanes` batches are encoded at a time, each on the store's frozen number of threads, and
    `decoders` threads (one more than lanes) read images for them. A process may be inside of two
    tasks: while one commits, the other has its turn to encode.
    """

    def __init__(
        self, root: Path, concurrent_batches: int = 1, decoders: int | None = None
    ) -> None:
        keep_freed_memory()
        plan = read_plan(root)
        if plan is None:
            raise StoreError(f"{root} has no plan. Run encode to make one.")
        track = plan.settings.track
        device = resolve_device(track["device"])
        self.root, self.plan = root, plan
        self.tokenizer = load_tokenizer(tokenizer_folder(root), device, track["convolution"])
        if self.tokenizer.fingerprint != track["fingerprint"]:
            raise StoreError(f"{self.tokenizer.folder} is not the tokenizer it began with.")
        self._batches = BatchEncoder(
            self.tokenizer,
            source_of(track, self.tokenizer.modality),
            batch_size=track["batch_size"],
            threads=track["threads"],
            concurrent_batches=concurrent_batches,
            decoders=decoders or concurrent_batches + 1,
        )
        self._keeper = ThreadPoolExecutor(1, "keep")
        self._turn = threading.Lock()
        self._inside: list[TaskBuffer] = []  # of the tasks that are not committed

    def run(self, work: Task | Piece) -> Done:
        """Encode and commit a task, or keep a piece of one; StoreError where that fails."""
        piece = _as_piece(work)
        if index_path(self.root, piece.task.grid, piece.task.number).exists():
            return self._committed(piece)  # by an attempt that died before it could say so
        buffer = _buffer(self.root, self.plan, piece.task)
        self._inside.append(buffer)
        try:
            self._fill(buffer, piece, whole=isinstance(work, Task))
            if isinstance(work, Task):
                self._commit(buffer, work)
        finally:
            self._inside.remove(buffer)
        statuses = [line.status for line in buffer.lines[piece.first : piece.end] if line]
        return Done(len(statuses), len(statuses) - statuses.count("ok"))

    def progress(self) -> Done:
        """Rows done and failed of the work that this worker is inside of."""
        inside = list(self._inside)
        return Done(sum(d.num_put for d in inside), sum(d.num_failed for d in inside))

    def stop(self) -> None:
        """Make every run() end soon, with an exception; what is done by then can be kept."""
        self._batches.stop()
        self._keeper.shutdown(wait=False)

    def _committed(self, piece: Piece) -> Done:
        grid, number = piece.task.grid, piece.task.number
        with _writing(self.root):
            publish_task(self.root, grid, number)
            remove_partial_shards(self.root, grid, number)
        statuses = read_part(self.root, grid, number)[0]["status"].to_pylist()
        statuses = statuses[piece.first : piece.end]
        return Done(len(statuses), len(statuses) - statuses.count("ok"))

    def _fill(self, buffer: TaskBuffer, piece: Piece, whole: bool) -> None:
        """Put every row of the piece that the draft lacks.

        What is not about to be committed as a `whole` task, or not soon, is kept in sub-parts.
        """
        missing = buffer.missing(piece.first, piece.end)
        if not missing:
            return
        kept, since = missing[0], math.inf  # the clock starts with the first batch
        keeping: list[Future[None]] = []

        def keep(end: int) -> None:
            nonlocal kept, since
            keeping.append(self._keeper.submit(_keep, self.root, piece.task, buffer, kept, end))
            kept, since = end, time.monotonic()

        try:
            for end in self._encode(buffer, piece.task, missing):
                since = min(since, time.monotonic())
                if time.monotonic() - since >= PARTIAL_SHARD_SECONDS:
                    keep(end)
            if kept < piece.end and not whole:
                keep(piece.end)
        finally:
            wait(keeping)
        for future in keeping:
            future.result()

    def _encode(self, buffer: TaskBuffer, task: Task, missing: list[int]) -> Iterator[int]:
        """Encode the rows at these places in order; after each batch, the place behind its last.

        Decoding begins at once, encoding when the task before has all its batches on their way.
        """
        factor = self.plan.settings.track["downsample_factor"]
        rows, columns = grid_shape(task.grid)
        planned = self._planned(buffer, task)
        reading = self._read(planned, missing, (rows * factor, columns * factor))
        ahead = deque(islice(reading, READ_AHEAD))
        encoding: deque[_Batch] = deque()
        with self._turn:
            while ahead:
                places, pictures = ahead.popleft()
                encoding.append(_Batch(places, pictures, self._batches.encode(pictures)))
                ahead.extend(islice(reading, 1))
                if len(encoding) > self._batches.concurrent_batches:
                    yield self._put(buffer, encoding.popleft())
        while encoding:
            yield self._put(buffer, encoding.popleft())

    def _planned(self, buffer: TaskBuffer, task: Task) -> pa.Table:
        """What a row's source asks for; of a further track also what became of the image."""
        planned = buffer.planned.select(READ_COLUMNS)
        if self.plan.track != "image":
            image = read_part(store_root(self.root), task.grid, task.number)[0]
            for name, asked_as in IMAGE_COLUMNS.items():
                planned = planned.append_column(asked_as, image[name])
        return planned

    def _read(
        self, planned: pa.Table, missing: list[int], size: Size
    ) -> Iterator[tuple[list[int], Reading]]:
        """Begin to decode batch after batch, each when it is asked for."""
        batch_size = self._batches.batch_size
        for number, group in groupby(missing, lambda place: place // batch_size):
            places = list(group)
            first = number * batch_size
            rows = planned.slice(first, batch_size).to_pylist()
            by_place = {place - first: rows[place - first] for place in places}
            yield places, self._batches.read(by_place, size)

    def _put(self, buffer: TaskBuffer, batch: _Batch) -> int:
        codes = batch.codes.result().numpy()
        for place, (within, line) in zip(batch.places, batch.reading.lines.items(), strict=True):
            found = line.result()
            buffer.put(place, found, codes[within] if found.status == "ok" else None)
        return batch.places[-1] + 1

    def _commit(self, buffer: TaskBuffer, task: Task) -> None:
        settings = self.plan.settings
        index = buffer.index(0, task.num_rows)
        shards = {buffer.track: buffer.codes}
        with _writing(self.root):
            commit_task(
                self.root,
                task.grid,
                task.number,
                settings.rows_per_task,
                shards,
                index,
                compress=settings.compress,
            )
            remove_partial_shards(self.root, task.grid, task.number)


class _Batch(NamedTuple):
    """A batch on its way to codes."""

    places: list[int]  # in the task
    reading: Reading
    codes: Future[CodesToCome]


def _as_piece(work: Task | Piece) -> Piece:
    return Piece(task=work, first=0, end=work.num_rows) if isinstance(work, Task) else work


def _buffer(root: Path, plan: Plan, task: Task) -> TaskBuffer:
    """The task as planned, with the rows that earlier attempts left in pieces."""
    form = row_form(task.grid, plan.settings.track)
    buffer = TaskBuffer(task_table(root, task), plan.track, form)
    for partial_shard in read_partial_shards(root, task.grid, task.number):
        buffer.put_partial_shard(partial_shard)
    return buffer


def _keep(root: Path, task: Task, buffer: TaskBuffer, first: int, end: int) -> None:
    """Make rows durable before their task is committed; after that they are no use."""
    if index_path(root, task.grid, task.number).exists():
        return
    codes, index = {buffer.track: buffer.codes[first:end]}, buffer.index(first, end)
    with _writing(root):
        write_partial_shard(root, task.grid, task.number, first, codes, index)


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Whatever the disk refuses is told with what to do; no image is to blame for it."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "See to the disk")
        where = error.filename or root
        raise StoreError(
            f"{where}: {error.strerror or error}. {remedy}, then run the same command again."
        ) from error
