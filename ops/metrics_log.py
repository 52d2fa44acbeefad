"""A run's metrics and images: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import image as image_summary
from torch.utils.tensorboard.summary import scalar as scalar_summary

from ops.disk_errors import DiskError, disk_errors_explained
from ops.files import write_bytes
from ops.paths import AnyPath, read_whole


class EventFile:
    """A new TensorBoard event file in `folder`, written at once and not in a thread.

    Torch's SummaryWriter writes in a thread, which dies with a traceback where the disk is full.
    Events of steps from `purge_step` on in the folder's older files are hidden by TensorBoard.
    Every method raises OSError where the disk refuses.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{os.getpid()}.{now}"
        self._file = open(folder / name, "xb")  # noqa: SIM115 - closed by close
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self._write(Event(step=purge_step, session_log=start))
        self.flush()

    def scalar(self, step: int, name: str, value: float) -> None:
        """Write one number."""
        self._write(Event(step=step, summary=scalar_summary(name, value)))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image, uint8 (H, W, 3)."""
        summary = image_summary(name, image, dataformats="HWC")
        self._write(Event(step=step, summary=summary))

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class MetricsLog:
    """A run's metrics and images: `metrics.jsonl` and TensorBoard events.

    On resume, lines of steps after `after_step` are dropped, since these steps will be repeated.
    Its methods raise OSError where the disk refuses, making and closing it DiskError.
    """

    def __init__(self, run: Path, after_step: int = 0) -> None:
        self.path = run / "metrics.jsonl"
        with disk_errors_explained(run):
            run.mkdir(parents=True, exist_ok=True)
            self._keep_until(after_step)
            self._events = EventFile(run / "tensorboard", purge_step=after_step + 1)
            self._file = open(self.path, "a")  # noqa: SIM115 - closed by __exit__

    def _keep_until(self, step: int) -> None:
        if self.path.exists():
            # A kill can leave the last line incomplete; its step will be repeated.
            kept = [line for line in _lines(self.path) if line["step"] <= step]
            write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line with `step` and the metrics."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.scalar(step, name, value)
        self._events.flush()

    def describe(self, step: int, texts: Mapping[str, str]) -> None:
        """Write a line of texts on the steps after `step`: what computes them, say."""
        self._file.write(json.dumps({"step": step, **texts}) + "\n")
        self._file.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image, uint8 (H, W, 3), for TensorBoard."""
        self._events.image(step, name, image)
        self._events.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in (self._file, self._events):
            try:
                with disk_errors_explained(self.path.parent):
                    file.close()
            except DiskError:
                if error is None:  # else that one, of the same disk perhaps, is the one to raise
                    raise


def read_metrics(path: AnyPath) -> list[dict[str, float]]:
    """The numbers of a metrics.jsonl by line, without lines that a kill left incomplete."""
    found = []
    for line in _lines(path):
        numbers = {name: value for name, value in line.items() if not isinstance(value, str)}
        if len(numbers) > 1:  # more than the step
            found.append(numbers)
    return found


def _lines(path: AnyPath) -> list[dict[str, Any]]:
    lines = []
    for text in read_whole(path).decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
