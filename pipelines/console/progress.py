"""Progress of long jobs: a bar on a terminal, a line every ten seconds in a log file."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ops.text import printable
from pipelines.console.terminal import show_error

LINE_SECONDS = 10.0
NO_BAR = ("", "dumb", "unknown")  # terminals, by $TERM, that cannot move the cursor
RATE_LINES = 6  # the rate is averaged over so many lines, so that the time left changes slowly


class ProgressBar(Protocol):
    """What a job reports to, from any thread. Fields: `note` (text) and `bad` (a count)."""

    def __enter__(self) -> ProgressBar: ...

    def __exit__(self, *error: Any) -> None: ...

    def add_task(
        self, description: str, *, total: float, completed: int = 0, **fields: Any
    ) -> TaskID: ...

    def advance(self, task_id: TaskID, advance: float = 1) -> None: ...

    def update(
        self,
        task_id: TaskID,
        *,
        completed: float | None = None,
        advance: float | None = None,
        **fields: Any,
    ) -> None: ...


def progress_bar(unit: str) -> ProgressBar:
    """A progress bar on stderr, or log lines if that is no terminal; the interface is rich's."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM", "") in NO_BAR:
        return LogProgress(unit)
    return Progress(
        LineColumn(lambda task: task.description),
        BarColumn(),
        MofNCompleteColumn(),
        LineColumn(lambda task: rate_text(task.finished_speed or task.speed, unit)),
        LineColumn(lambda task: _bad_text(task.fields)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        LineColumn(lambda task: str(task.fields.get("note", ""))),
        console=Console(stderr=True),
        speed_estimate_period=60,
    )


def rate_text(rate: float | None, unit: str) -> str:
    """Units a second, or seconds a unit below one a second; "" if unknown."""
    if not rate:
        return ""
    return f"{rate:,.1f} {unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit}"


class LineColumn(ProgressColumn):
    """Text of a task; no markup in it is interpreted, and nothing acts on the terminal."""

    def __init__(self, text_of: Callable[[Task], str]) -> None:
        super().__init__()
        self.text_of = text_of

    def render(self, task: Task) -> Text:
        return Text(printable(self.text_of(task)))


def _bad_text(fields: dict[str, Any]) -> str:
    return f"{fields['bad']:,} bad" if "bad" in fields else ""


@dataclass
class _Job:
    description: str
    total: float
    completed: float
    fields: dict[str, Any]
    begun: tuple[float, float]  # (time, completed) at its start
    lines: deque[tuple[float, float]] = field(init=False)  # the same at the last lines

    def __post_init__(self) -> None:
        self.lines = deque([self.begun], maxlen=RATE_LINES)


class LogProgress:
    """Log lines on stderr: one every ten seconds for a job that advances, and one at the end."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._jobs: list[_Job] = []
        self._lock = threading.Lock()

    def __enter__(self) -> LogProgress:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            for job in self._jobs:
                elapsed = time.monotonic() - job.begun[0]
                self._write(job, job.begun, f"in {_clock(elapsed)}")

    def add_task(
        self, description: str, *, total: float, completed: int = 0, **fields: Any
    ) -> TaskID:
        begun = (time.monotonic(), float(completed))
        with self._lock:
            self._jobs.append(_Job(description, total, completed, fields, begun))
            return TaskID(len(self._jobs) - 1)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        self.update(task_id, advance=advance)

    def update(
        self,
        task_id: TaskID,
        *,
        completed: float | None = None,
        advance: float | None = None,
        **fields: Any,
    ) -> None:
        with self._lock:
            job = self._jobs[task_id]
            job.completed = (job.completed if completed is None else completed) + (advance or 0)
            job.fields.update(fields)
            if time.monotonic() - job.lines[-1][0] >= LINE_SECONDS:
                self._write(job, job.lines[0], None)
                job.lines.append((time.monotonic(), job.completed))

    def _write(self, job: _Job, since: tuple[float, float], end: str | None) -> None:
        """Write one line with the rate since `since`; `end` replaces the time left."""
        seconds = time.monotonic() - since[0]
        rate = (job.completed - since[1]) / seconds if seconds > 0 else 0.0
        if end is None:
            end = f"{_clock((job.total - job.completed) / rate)} left" if rate > 0 else ""
        parts = [
            f"{job.description} {job.completed:,.0f}/{job.total:,.0f}",
            rate_text(rate, self.unit),
            _bad_text(job.fields),
            end,
            str(job.fields.get("note", "")),
        ]
        show_error("  ".join(part for part in parts if part))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
