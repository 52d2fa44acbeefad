"""A step of sampling as a fixed sequence of kernels: run eagerly, or replayed as a CUDA graph.

All that differs between two calls of a step are indices: which cells, which tokens, which cached
keys. They are rows of a table on the device, and a counter on the device says which row is next.
So a call takes nothing from the host, and a GPU can replay its kernels without Python.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # as torch.cuda.graph's documentation has it: libraries initialize lazily
_CAPTURING = threading.Lock()  # torch allows one capture at a time in a process


class GraphCaptureError(RuntimeError):
    """Raised when a step cannot be captured as a CUDA graph."""


class GraphPool(NamedTuple):
    """Memory, and the stream to capture on, of graphs that never run at the same time."""

    handle: Any
    stream: torch.cuda.Stream

    @classmethod
    def on(cls, device: torch.device) -> GraphPool | None:
        """A new pool; None on CPUs, which have no graphs."""
        if device.type != "cuda":
            return None
        return cls(torch.cuda.graph_pool_handle(), _capture_stream(device))


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures on a GPU: cuBLAS keeps a workspace for each stream for ever."""
    return torch.cuda.Stream(device)


class IndexedStep:
    """A function of one row of indices, called for one row after another.

    The function must have the same shapes each time, use tensors whose memory stays where it is,
    read and write no host memory, and accept `unused` as a row: one that changes no result.
    """

    def __init__(
        self, function: Callable[[Tensor], None], unused: Tensor, pool: GraphPool | None
    ) -> None:
        """`unused` (W,) int64 is on the device to run on; only GPUs need a pool."""
        self._function, self._unused, self._pool = function, unused, pool
        self._rows = unused[None]
        self._next = torch.zeros(1, dtype=torch.int64, device=unused.device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def load(self, rows: Tensor) -> None:
        """The rows (n, W) of the next n calls."""
        if len(self._rows) <= len(rows):  # the graph reads the old table
            self._rows, self._graph = self._unused.repeat(len(rows) + 1, 1), None
        self._rows[: len(rows)] = rows
        self.rewind()

    def rewind(self) -> None:
        """Start again with the first row."""
        self._next.zero_()

    def capture(self) -> None:
        """On a GPU, capture the step as a graph unless there is one. Raises GraphCaptureError."""
        if self._graph is not None or self._pool is None:
            return
        with _CAPTURING:
            self._warm_up(self._pool.stream)
            try:
                self._graph = self._captured(self._pool)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                cause = error.__context__ or error  # what ended the capture comes before its end
                raise GraphCaptureError(
                    f"A step of sampling could not be captured as a CUDA graph: {cause} "
                    "Sample with static_decode=False, which is slower, and please report this."
                ) from error
        self.rewind()

    def _warm_up(self, stream: torch.cuda.Stream) -> None:
        """Run some unused rows on the stream of the capture.

        So that what libraries keep for a stream is made before, outside of the graphs' memory.
        """
        current = torch.cuda.current_stream(self._unused.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                self._next.fill_(len(self._rows) - 1)
                self._run()
        current.wait_stream(stream)

    def _captured(self, pool: GraphPool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: they are not captured, and must not make the
        # capture fail.
        with (
            torch.cuda.device(self._unused.device),
            torch.cuda.graph(
                graph, pool=pool.handle, stream=pool.stream, capture_error_mode="thread_local"
            ),
        ):
            self._run()
        return graph

    def __call__(self) -> None:
        """Call the function for the next row."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def _run(self) -> None:
        row = self._rows.index_select(0, self._next)[0]
        self._next.add_(1)
        self._function(row)
