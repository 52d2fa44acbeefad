"""StallWatch: whether a worker has made no progress for too long.

Most often it reads from a disk or a server that does not answer; the read itself has no time limit.
"""

from __future__ import annotations

import time

from pipelines.jobs.worker_reports import PROGRESS_SECONDS


class StallWatch:
    """A clock of the seconds in which the driver waited for its workers.

    It stands while the driver is stopped or does something else, since reports of the workers wait
    then. A worker with tasks is stalled when its last sign of progress is `limit` seconds ago.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self.now = 0.0
        #: Seconds between the reports of a worker.
        self.interval = PROGRESS_SECONDS if limit is None else min(PROGRESS_SECONDS, limit / 4)
        self._ticked = time.monotonic()

    def tick(self) -> None:
        """To be called at least every `interval`, after all reports that have come were read."""
        ticked = time.monotonic()
        self.now += min(ticked - self._ticked, 2 * self.interval)
        self._ticked = ticked

    def is_stalled(self, progressed: float) -> bool:
        """Whether a worker is stalled that made progress last when the clock was `progressed`."""
        return self._limit is not None and self.now - progressed >= self._limit

    def why(self) -> str:
        return (
            f"the worker made no progress for {self._limit:g} seconds and was killed: what it "
            "reads does not answer, or its work takes longer. See --stall-timeout"
        )
