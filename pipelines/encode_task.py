"""What one worker does for one task: read, decode, encode, commit.

Batches are cut at fixed places of the task and filled up where an image failed or the task ends,
and each runs on the frozen number of threads. So a row's codes do not depend on how many workers
there are, nor on which ran it, nor on what was killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from ops.config import from_json
from ops.images import ImageError, Transform, to_pixels
from ops.runtime import resolve_device
from pipelines.plan import Task, read_plan, task_rows
from pipelines.readers import read_bytes
from pipelines.store import (
    INDEX_SCHEMA,
    StoreError,
    code_dtype,
    commit_task,
    fill_value,
    grid_shape,
)
from pipelines.store.layout import tokenizer_path
from pipelines.store.shards import row_checksums
from tokenizer import load_tokenizer

READ_AHEAD = 2  # batches decoded before a compute thread asks for them


class Outcome(NamedTuple):
    """What reading one planned row gave: a picture, or a reason why not."""

    image: np.ndarray[Any, np.dtype[np.uint8]] | None
    line: dict[str, Any]  # width, height, status and error for the index


class EncodeWorker:
    """Encodes the tasks of one store; made once a process, it loads the store's own tokenizer.

    `lanes` batches are computed at a time, each on the store's frozen number of threads;
    `on_rows` is told how many rows each finished batch had.
    """

    def __init__(
        self, root: Path, lanes: int = 1, on_rows: Callable[[int], None] | None = None
    ) -> None:
        plan = read_plan(root)
        if plan is None:
            raise StoreError(f"{root} has no plan. Run encode to make one.")
        self.root = root
        self.rows_per_task = plan.settings.rows_per_task
        self.track = plan.settings.track
        self.transform = from_json(Transform, self.track["transform"])
        self.device = resolve_device(self.track["device"])
        self.tokenizer = load_tokenizer(tokenizer_path(root, "image"), self.device)
        if self.tokenizer.fingerprint != self.track["fingerprint"]:
            raise StoreError(f"{self.tokenizer.folder} is not the tokenizer the store began with.")
        self.lanes = lanes
        self.on_rows = on_rows or (lambda count: None)

    def run(self, task: Task) -> int:
        """Encode and commit one task; the number of rows that failed."""
        rows = task_rows(self.root, task)
        dtype = code_dtype(self.track["codebook_size"])
        codes = np.full((len(rows), *grid_shape(task.grid)), fill_value(dtype), dtype)
        lines: list[dict[str, Any]] = []
        for first, outcomes, batch in self._batches(rows, grid_shape(task.grid)):
            for place, outcome in enumerate(outcomes):
                if outcome.image is not None:
                    codes[first + place] = batch[place]
                lines.append(outcome.line)
            self.on_rows(len(outcomes))
        index = self._index(rows, lines, row_checksums(codes))
        commit_task(self.root, task.grid, task.number, self.rows_per_task, {"image": codes}, index)
        return sum(line["status"] != "ok" for line in lines)

    def _batches(
        self, rows: list[dict[str, Any]], grid: tuple[int, int]
    ) -> Iterator[tuple[int, list[Outcome], np.ndarray[Any, Any]]]:
        """(first row, outcomes, codes) of each batch in order, computed in `lanes` threads."""
        factor = self.track["downsample_factor"]
        size = (grid[0] * factor, grid[1] * factor)
        batch_size = self.track["batch_size"]
        started: deque[tuple[int, list[Future[Outcome]], Future[np.ndarray[Any, Any]]]] = deque()
        with (
            ThreadPoolExecutor(self.lanes + 1, "decode") as decoders,
            ThreadPoolExecutor(
                self.lanes, "encode", torch.set_num_threads, (self.track["threads"],)
            ) as encoders,
        ):
            for first in range(0, len(rows), batch_size):
                reading = [
                    decoders.submit(self._read, row, size)
                    for row in rows[first : first + batch_size]
                ]
                started.append((first, reading, encoders.submit(self._encode, reading, size)))
                if len(started) > self.lanes + READ_AHEAD:
                    yield _finished(started.popleft())
            while started:
                yield _finished(started.popleft())

    def _read(self, row: dict[str, Any], size: tuple[int, int]) -> Outcome:
        try:
            data = read_bytes(row["uri"], row["offset"], row["size"])
            picture = self.transform.read(data, size, row["view"], row["key"])
        except ImageError as error:
            return Outcome(None, _line(None, None, error.reason, str(error)))
        return Outcome(picture.image, _line(picture.width, picture.height, "ok", None))

    def _encode(
        self, reading: list[Future[Outcome]], size: tuple[int, int]
    ) -> np.ndarray[Any, Any]:
        """Codes (B, h, w) for one batch, always computed at the full batch size."""
        images = np.zeros((self.track["batch_size"], *size, 3), np.uint8)
        for place, future in enumerate(reading):
            image = future.result().image
            if image is not None:
                images[place] = image
        with torch.inference_mode():
            pixels = to_pixels(images).to(self.device)
            return self.tokenizer.encode(pixels)[: len(reading)].cpu().numpy()

    def _index(
        self, rows: list[dict[str, Any]], lines: list[dict[str, Any]], checksums: list[int]
    ) -> pa.Table:
        table = [
            {
                **{name: row[name] for name in ("key", "grid", "row", "view", "label", "replaces")},
                "source": row["uri"],
                "checksum": checksum,
                **line,
            }
            for row, line, checksum in zip(rows, lines, checksums, strict=True)
        ]
        return pa.Table.from_pylist(table, INDEX_SCHEMA)


def _line(width: int | None, height: int | None, status: str, error: str | None) -> dict[str, Any]:
    return {"width": width, "height": height, "status": status, "error": error}


def _finished(
    batch: tuple[int, list[Future[Outcome]], Future[np.ndarray[Any, Any]]],
) -> tuple[int, list[Outcome], np.ndarray[Any, Any]]:
    first, reading, encoding = batch
    return first, [future.result() for future in reading], encoding.result()
