"""The size of a batch from a device's memory, on devices whose memory is a formula."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from ops.device_memory import (
    TRIALS,
    DeviceMemoryError,
    MemoryModel,
    fit_memory,
    fitting_size,
    largest_size,
    memory_errors_explained,
)
from ops.transient_errors import is_transient

GIB = 2**30


class FormulaMemory:
    """A device with `total` bytes free, on which a run of size n takes `need(n)` bytes."""

    def __init__(self, total: int, need: Callable[[int], int]) -> None:
        self.total, self.need = total, need
        self.sizes: list[int] = []

    def run(self, size: int) -> None:
        self.sizes.append(size)
        if self.need(size) > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB. GPU 0 has 8.")

    def free(self) -> int:
        return self.total

    def peak(self, run: Callable[[], object]) -> int:
        run()
        return self.need(self.sizes[-1])


class Measuring(FormulaMemory):
    """Takes one byte for whatever it is given to run."""

    def peak(self, run: Callable[[], object]) -> int:
        run()
        return 1


def size_on(memory: FormulaMemory, most: int = 256) -> int:
    return fitting_size(memory, memory.run, most=most, share=0.8)


@hypothesis.given(
    fixed=st.integers(0, 4 * GIB), per_item=st.integers(1, GIB), total=st.integers(GIB, 100 * GIB)
)
def test_the_size_is_the_largest_power_of_two_that_fits(
    fixed: int, per_item: int, total: int
) -> None:
    memory = FormulaMemory(total, lambda size: fixed + per_item * size)
    fits = [size for size in (2**k for k in range(9)) if memory.need(size) <= 0.8 * total]
    if fits:
        # Bytes are whole numbers, the line's are not.
        assert size_on(memory) == max(fits) or memory.need(max(fits)) > 0.8 * total - 2
    else:
        with pytest.raises(DeviceMemoryError, match=r"One item takes|too little memory: CUDA out"):
            size_on(memory)
    assert set(memory.sizes) <= set(TRIALS)


def test_a_step_in_the_need_is_taken_as_the_slope() -> None:
    assert fit_memory({1: 10, 2: 11, 4: 23, 8: 27}) == MemoryModel(4.0, 6.0)
    assert fit_memory({1: 10, 2: 12}) == MemoryModel(8.0, 2.0)
    with pytest.raises(ValueError, match="two batch sizes, found 1"):
        fit_memory({1: 10})


def test_no_more_than_the_most_is_tried_or_chosen() -> None:
    memory = FormulaMemory(100 * GIB, lambda size: size)
    assert size_on(memory, most=3) == 2
    assert max(memory.sizes) == 2
    assert size_on(memory, most=1) == 1
    assert largest_size(MemoryModel(2.0, 1.0), 2.5, 8) == 0


def test_a_trial_without_enough_memory_ends_the_trials() -> None:
    """The need jumps where other kernels are chosen: beyond what two points show."""
    memory = FormulaMemory(8 * GIB, lambda size: GIB if size < 4 else 9 * GIB)
    assert size_on(memory) == 2


def test_other_errors_of_a_trial_are_not_taken_for_a_lack_of_memory() -> None:
    def run(size: int) -> None:
        if size == 2:
            raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel image"):
        fitting_size(Measuring(GIB, lambda size: 1), run, most=8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    ],
)
def test_a_lack_of_memory_is_transient_and_names_the_remedy(error: RuntimeError) -> None:
    assert is_transient(error)
    with (
        pytest.raises(
            DeviceMemoryError, match=r"too little memory: .*\. Use a smaller batch"
        ) as got,
        memory_errors_explained("Use a smaller batch."),
    ):
        raise error
    assert is_transient(got.value)
    with pytest.raises(RuntimeError, match=r"^an illegal address$"), memory_errors_explained(""):
        raise RuntimeError("an illegal address")
