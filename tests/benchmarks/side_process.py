"""Runs one side of a benchmark in a process of its own, step by step on request.

Two sides that take turns then share neither memory settings nor memory, and each one's peak is its
own. In the test suite the sides run in this process instead, which is quicker.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

GIB = 1 << 30
Step = Callable[[int], Any]
"""One step of the work, called with the number of steps before it."""


class Finished(NamedTuple):
    """A side's results when it stops."""

    result: Any  # of the last step
    idle: float  # the process's peak memory before the work was set up, in bytes
    peak: float  # and at the end


class Side:
    """The work of one side, and the seconds that it took."""

    def __init__(self, make_step: Callable[[], Step], threads: int, in_process: bool) -> None:
        """Set up the work by make_step(), which must be picklable, on so many torch threads."""
        self.seconds: list[float] = []
        self._worker = _Worker(make_step, threads) if in_process else None
        if not in_process:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(make_step, threads, other), daemon=True
            )
            self._process.start()

    def run(self, steps: int = 1) -> None:
        """Run so many steps; appends the seconds that they took."""
        if self._worker is not None:
            self.seconds.append(self._worker.run(steps))
            return
        self._pipe.send(steps)
        self.seconds.append(self._pipe.recv())

    def stop(self) -> Finished:
        """End the process."""
        if self._worker is not None:
            return self._worker.finish()
        self._pipe.send(0)
        finished: Finished = self._pipe.recv()
        self._process.join()
        return finished


class _Worker:
    def __init__(self, make_step: Callable[[], Step], threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._idle = peak_memory()
        self._step, self._done, self._result = make_step(), 0, None

    def run(self, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            self._result = self._step(self._done)
            self._done += 1
        return time.perf_counter() - started

    def finish(self) -> Finished:
        return Finished(self._result, self._idle, peak_memory())


def _serve(make_step: Callable[[], Step], threads: int, pipe: Connection) -> None:
    worker = _Worker(make_step, threads)
    while steps := pipe.recv():
        pipe.send(worker.run(steps))
    pipe.send(worker.finish())


def peak_memory() -> float:
    """Peak resident memory of this process in bytes; nan where /proc is missing.

    resource.getrusage would include the peak of the parent process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return found[0] * 1024 if found else float("nan")
