"""EncodeWorker: reads, decodes and encodes one task of a track, and commits it.

Batches begin at fixed places of the task, are padded where an image failed or the task ends, and
run on the frozen number of threads. So a row's codes do not depend on the number of workers, on
which of them encoded it, or on kills.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from ops.cache_folder import SHARDS, cache_folder
from ops.config import from_json
from ops.disk_errors import disk_errors_explained
from ops.images import Transform
from ops.paths import AnyPath, exists
from ops.precision import use_precision
from ops.runtime import (
    compute_repeatably,
    describe_environment,
    keep_freed_memory,
    resolve_device,
)
from ops.text import printable
from pipelines.encoding.batches import BatchEncoder, PendingCodes, Reading
from pipelines.encoding.forward import compiled_sizes
from pipelines.encoding.sources import IMAGE_COLUMNS, Size, source_of
from pipelines.jobs import Done, Piece, precision_of
from pipelines.planning import Plan, Task, read_plan, task_table
from pipelines.store import (
    CRASHED,
    OK,
    STALLED,
    IndexLine,
    StoreError,
    TaskBuffer,
    commit_task,
    environment_text,
    grid_shape,
    index_buffer,
    index_path,
    index_table,
    local_tokenizer,
    publish_task,
    read_part,
    remove_partial_shards,
    row_form,
    store_root,
)
from tokenizer import NO_CODE, NOT_FINITE, NonFiniteLatentsError, load_tokenizer

READ_COLUMNS = ["key", "uri", "offset", "size", "etag", "view"]
KEEP_SECONDS = 30.0  # between two partial shards: how much work a kill may cost
CRASHED_LINE = IndexLine(None, None, CRASHED, "the process that encoded it died every time", None)
STALLED_LINE = IndexLine(None, None, STALLED, "reading or encoding it never ended", None)

Buffer = TaskBuffer[IndexLine]


def quarantine(root: AnyPath, plan: Plan, piece: Piece[Task], stalled: bool = False) -> Done:
    """Record the remaining row as `crashed` or `stalled`, so that the next attempt skips it."""
    (place,) = range(piece.first, piece.end)
    if not _is_committed(root, piece.task):
        with disk_errors_explained(root):
            _read_buffer(root, plan, piece.task).quarantine(
                place, STALLED_LINE if stalled else CRASHED_LINE
            )
    return Done(1, 1)


class EncodeWorker:
    """Encodes the tasks of one store, or of the track whose directory `root` is.

    Made once a process: it loads the tokenizer kept there. `concurrent_batches` are encoded at a
    time, each on the store's frozen number of threads, and `decoders` threads (by default one more
    than batches) read images for them. `environment` replaces settings of the track (--accept);
    what a row was made with is recorded with it. A process may run several tasks at once, each in a
    thread of the caller's: while one commits, the next encodes. Partial shards are written by a
    thread of the worker's.
    """

    def __init__(
        self,
        root: AnyPath,
        concurrent_batches: int = 1,
        decoders: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        keep_freed_memory()
        plan = read_plan(root)
        if plan is None:
            raise StoreError(f"{root} has no plan. Run encode to make one.")
        track = plan.settings.track | dict(environment)
        compute_repeatably()
        device, precision = resolve_device(track["device"]), precision_of(track)
        use_precision(precision)
        self.root, self.plan = root, plan
        self.tokenizer = load_tokenizer(_tokenizer_of(root), device, track["convolution"])
        if self.tokenizer.fingerprint != track["fingerprint"]:
            raise StoreError(f"{self.tokenizer.folder} is not the tokenizer it began with.")
        compiled = _compiled_sizes(plan.settings.track, device)
        self._batches = BatchEncoder(
            self.tokenizer,
            source_of(track, self.tokenizer.modality, device),
            batch_size=track["batch_size"],
            threads=track["threads"],
            concurrent_batches=concurrent_batches,
            decoders=decoders or concurrent_batches + 1,
            precision=precision,
            compiled=compiled,
        )
        self._environment = environment_text(
            {
                **describe_environment(device),
                "precision": precision,
                "convolution": track["convolution"],
                **({"compile": "yes"} if compiled else {}),
            }
        )
        self._keeper = ThreadPoolExecutor(1, "keep")
        self._encoding = threading.Lock()  # of the task whose batches are being submitted
        self._running: list[Buffer] = []  # tasks that are not committed

    def run(self, piece: Piece[Task]) -> Done:
        """Encode and commit a task, or keep a piece of one.

        Raises DiskError where the disk refuses to write, StoreError where the store is corrupt.
        """
        task = piece.task
        if _is_committed(self.root, task):  # by an attempt that died before it returned
            return self._committed(piece)
        buffer = _read_buffer(self.root, self.plan, task, self._environment)
        self._running.append(buffer)
        try:
            planned = task_table(self.root, task)
            self._fill(buffer, piece, planned)
            if piece.commits:
                self._commit(buffer, task, planned)
        finally:
            self._running.remove(buffer)
        return Done(*buffer.count(piece.first, piece.end))

    def progress(self) -> Done:
        """Rows done and failed in the tasks that are running."""
        running = list(self._running)
        return Done(sum(b.num_put for b in running), sum(b.num_failed for b in running))

    def heartbeat(self) -> int:
        """Steps of work done: images read, and on a CPU the encoder's layers computed."""
        return self._batches.heartbeat.steps

    def stop(self) -> None:
        """Make every run() end soon, with an exception; rows done by then may still be kept."""
        self._batches.stop()
        self._keeper.shutdown(wait=False)

    def _committed(self, piece: Piece[Task]) -> Done:
        grid, number = piece.task.grid, piece.task.number
        with disk_errors_explained(self.root):
            publish_task(self.root, grid, number)
            remove_partial_shards(self.root, grid, number)
        statuses = read_part(self.root, grid, number)[0]["status"].to_pylist()
        statuses = statuses[piece.first : piece.end]
        return Done(len(statuses), len(statuses) - statuses.count(OK))

    def _fill(self, buffer: Buffer, piece: Piece[Task], planned: pa.Table) -> None:
        """Put every row of the piece that the buffer lacks.

        A partial shard is written every KEEP_SECONDS, and at the end of a piece that does not
        commit.
        """
        missing = buffer.missing(piece.first, piece.end)
        if not missing:
            return
        kept, since = missing[0], math.inf  # the clock starts with the first batch
        keeping: list[Future[None]] = []

        def keep(end: int) -> None:
            nonlocal kept, since
            keeping.append(self._keeper.submit(self._keep, buffer, piece.task, kept, end))
            kept, since = end, time.monotonic()

        try:
            for end in self._encode(buffer, piece.task, planned, missing):
                since = min(since, time.monotonic())
                if time.monotonic() - since >= KEEP_SECONDS:
                    keep(end)
            if kept < piece.end and not piece.commits:
                keep(piece.end)
        finally:
            wait(keeping)
        for future in keeping:
            future.result()

    def _keep(self, buffer: Buffer, task: Task, first: int, end: int) -> None:
        """Write rows to a partial shard, unless another attempt has committed the task."""
        if not _is_committed(self.root, task):
            with disk_errors_explained(self.root):
                buffer.keep(first, end)

    def _encode(
        self, buffer: Buffer, task: Task, planned: pa.Table, missing: list[int]
    ) -> Iterator[int]:
        """Encode the rows at these places in order; after each batch, the place after its last.

        Decoding begins at once; encoding begins when the task before has submitted all its batches.
        """
        factor = self.plan.settings.track["downsample_factor"]
        rows, columns = grid_shape(task.grid)
        reading = self._read(
            self._to_read(task, planned), missing, (rows * factor, columns * factor)
        )
        ahead = deque(islice(reading, self._batches.read_ahead))
        encoding: deque[_Batch] = deque()
        with self._encoding:
            while ahead:
                places, batch = ahead.popleft()
                encoding.append(_Batch(places, batch, self._batches.encode(batch)))
                ahead.extend(islice(reading, 1))
                if len(encoding) > self._batches.most_submitted:
                    yield self._put(buffer, encoding.popleft(), planned)
        while encoding:
            yield self._put(buffer, encoding.popleft(), planned)

    def _to_read(self, task: Task, planned: pa.Table) -> pa.Table:
        """The columns that a row's source needs; of a further track also its image's outcome."""
        columns = planned.select(READ_COLUMNS)
        if self.plan.track != "image":
            image = read_part(store_root(self.root), task.grid, task.number)[0]
            for name, renamed in IMAGE_COLUMNS.items():
                columns = columns.append_column(renamed, image[name])
        return columns

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

    def _put(self, buffer: Buffer, batch: _Batch, planned: pa.Table) -> int:
        codes = batch.codes.result().numpy()
        no_code = (codes == NO_CODE).any(axis=(1, 2))
        for place, (within, line) in zip(batch.places, batch.reading.lines.items(), strict=True):
            found = line.result()
            if found.status == OK and no_code[within]:
                key = printable(planned["key"][place].as_py(), 100)
                raise NonFiniteLatentsError(f"{key}: {NOT_FINITE}")
            buffer.put(place, found, codes[within] if found.status == OK else None)
        return batch.places[-1] + 1

    def _commit(self, buffer: Buffer, task: Task, planned: pa.Table) -> None:
        settings = self.plan.settings
        index = index_table(planned, buffer.lines, buffer.codes)
        with disk_errors_explained(self.root):
            commit_task(
                self.root,
                task.grid,
                task.number,
                settings.rows_per_task,
                {self.plan.track: buffer.codes},
                index,
                compress=settings.compress,
                environments=buffer.environments(),
            )
            remove_partial_shards(self.root, task.grid, task.number)


def _compiled_sizes(track: Mapping[str, Any], device: torch.device) -> Collection[Size]:
    """The sizes of views whose encoder is compiled: none on another device than the store's own."""
    if track.get("compile") != "yes" or device.type != torch.device(track["device"]).type:
        return ()
    return compiled_sizes(from_json(Transform, track["transform"]))


class _Batch(NamedTuple):
    """A batch that is being encoded."""

    places: list[int]  # in the task
    reading: Reading
    codes: Future[PendingCodes]


def _is_committed(root: AnyPath, task: Task) -> bool:
    return exists(index_path(root, task.grid, task.number))


def _tokenizer_of(root: AnyPath) -> Path:
    return local_tokenizer(root, cache_folder(SHARDS))


def _read_buffer(root: AnyPath, plan: Plan, task: Task, environment: str = "") -> Buffer:
    """The task's buffer with the rows that earlier attempts have kept."""
    form = row_form(task.grid, plan.settings.track)
    buffer = index_buffer(root, task.grid, task.number, task.num_rows, form, environment)
    buffer.read_kept()
    return buffer
