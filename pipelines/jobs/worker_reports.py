"""worker_reports: what a worker has done so far, sent by its process whenever that changes.

The driver asks nobody: a worker that does nothing costs it nothing, and one that is silent for long
is stalled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

PROGRESS_SECONDS = 1.0  # between two reports of a worker


class Report(NamedTuple):
    """What a worker says of the tasks that it runs."""

    progress: Any  # of its progress(), to be shown; None where it has none
    heartbeat: Any  # of its heartbeat(), which changes as long as it works; None where it has none


def worker_reports(worker: Any, seconds: float, stopped: threading.Event) -> Iterator[Report]:
    """A report every so many seconds in which something changed, until `stopped`."""
    last = None
    while not stopped.wait(seconds):
        methods = (getattr(worker, name, None) for name in Report._fields)
        report = Report(*(method() if method else None for method in methods))
        if report != last:
            last = report
            yield report
