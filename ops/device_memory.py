"""How much of a computation fits into a GPU's memory, and the error where it does not.

The peak memory of a forward pass grows linearly with its batch: it is measured at a few small sizes
and the largest size that fits is computed. Encoding sizes its batches so, sampling its slots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch

from ops.transient_errors import TransientError, is_device_memory_error

SHARE = 0.8  # of the free memory that a batch may take: the rest is for fragments and copies
TRIALS = (1, 2, 4, 8)  # batch sizes whose peak is measured


class DeviceMemoryError(TransientError):
    """A GPU has too little free memory; a later attempt may find more."""


class DeviceMemory(Protocol):
    """What fitting_size asks of a device; all in bytes."""

    def free(self) -> int:
        """The memory that this process could still take."""

    def peak(self, run: Callable[[], object]) -> int:
        """The most memory that `run` held at once, beyond what was held before it."""


class CudaMemory:
    """The memory of a GPU, as torch's allocator counts it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + cached

    def peak(self, run: Callable[[], object]) -> int:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


class MemoryModel(NamedTuple):
    """Peak memory as a linear function of the batch size, in bytes."""

    fixed: float
    per_item: float

    def peak(self, size: int) -> float:
        return self.fixed + self.per_item * size


def fit_memory(peaks: Mapping[int, int]) -> MemoryModel:
    """The line through measured peaks (bytes, by batch size) that none of them exceeds.

    It is as steep as its steepest part, since a larger batch may choose kernels that need more.
    Raises ValueError for fewer than two sizes.
    """
    points = sorted(peaks.items())
    if len(points) < 2:
        raise ValueError(f"a line needs two batch sizes, found {len(points)}")
    slope = max(
        (above - below) / (larger - smaller)
        for (smaller, below), (larger, above) in pairwise(points)
    )
    slope = max(slope, 0.0)
    return MemoryModel(max(0.0, *(peak - slope * size for size, peak in points)), slope)


def largest_size(model: MemoryModel, available: float, most: int) -> int:
    """The largest power of two, at most `most`, that takes at most `available` bytes; 0 if none."""
    fitting, size = 0, 1
    while size <= most and model.peak(size) <= available:
        fitting, size = size, 2 * size
    return fitting


def fitting_size(
    memory: DeviceMemory,
    run: Callable[[int], object],
    *,
    most: int,
    share: float = SHARE,
    remedy: str = "Free the GPU, or use one with more memory.",
) -> int:
    """The largest power of two, at most `most`, for which `run(size)` takes at most `share` of the
    free memory.

    `run` computes a batch of that size on the device, as the job will; it is called with small
    sizes only. To be called once, when a job is planned, and its result recorded: later the free
    memory may be another. Raises DeviceMemoryError, with the `remedy`, where one item does not fit.
    """
    with memory_errors_explained(remedy):
        run(1)  # not measured: the first call also makes what stays, such as workspaces
        available = share * memory.free()
        peaks = {1: memory.peak(partial(run, 1))}
    for size in (size for size in TRIALS[1:] if size <= most):
        try:
            peaks[size] = memory.peak(partial(run, size))
        except RuntimeError as error:
            if not is_device_memory_error(error):
                raise
            most = size - 1
            break
    if peaks[1] > available:
        raise DeviceMemoryError(
            f"One item takes {peaks[1] / 2**30:.1f} GiB of a GPU's memory, and "
            f"{available / 2**30:.1f} GiB may be used. {remedy}"
        )
    return largest_size(fit_memory(peaks), available, most) if len(peaks) > 1 else 1


@contextlib.contextmanager
def memory_errors_explained(remedy: str) -> Iterator[None]:
    """Raise a GPU's lack of memory in the body as DeviceMemoryError, with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not is_device_memory_error(error):
            raise
        reason = str(error).splitlines()[0].split(". ")[0].removesuffix(".")
        raise DeviceMemoryError(f"The GPU has too little memory: {reason}. {remedy}") from error
