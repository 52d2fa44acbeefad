"""JobProgress: what the finished and running pieces of a job have done together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipelines.jobs.queue import Done

NOTHING = Done(0, 0)


class JobProgress:
    """Adds up Dones and hands the total to `show`; the total never decreases.

    Work that a dead worker had begun is done again, and the total waits for it.
    """

    def __init__(self, show: Callable[[Done], None], done: Done = NOTHING) -> None:
        self._show = show
        self._finished = self._shown = done

    def add(self, done: Done) -> None:
        """Count finished work."""
        self._finished = _total([self._finished, done])
        self.update([])

    def update(self, running: list[Done]) -> None:
        """Show the total with what the workers have done of their running work."""
        total = _total([self._finished, *running])
        self._shown = Done(*map(max, self._shown, total))
        self._show(self._shown)


def _total(dones: Iterable[Done]) -> Done:
    return Done(*map(sum, zip(*dones, strict=True)))
