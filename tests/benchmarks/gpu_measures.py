"""Timing of calls on a GPU: seconds, rates, peak memory, kernels; on a CPU the first two."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

#: Products of a dense bfloat16 matrix, of this side, whose rate counts as the card's own.
MATRIX_SIDE = 8192


class Profiled(NamedTuple):
    """What the profiler saw of one call; seconds of kernels that run at once add up."""

    kernels: int
    kernel_seconds: float
    longest: list[tuple[str, float, int]]  # name, milliseconds, calls


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_memory(device: torch.device) -> None:
    """Forget the peak so far, and give cached memory back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float | None:
    """The most memory of tensors since `reset_memory`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def seconds_of(
    call: Callable[[], Any], device: torch.device, rounds: int = 5, warm_up: int = 2
) -> float:
    """Median seconds of a call after some that do not count."""
    for _ in range(warm_up):
        call()
    taken = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def profiled(call: Callable[[], Any], device: torch.device) -> Profiled | None:
    """The kernels of one call; None on a CPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        synchronize(device)
    events = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    averages = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:8]
    return Profiled(
        len(events),
        sum(event.device_time for event in events) / 1e6,
        [(e.key[:60], e.self_device_time_total / 1e3, e.count) for e in averages],
    )


def matmul_tflops(dtype: torch.dtype, device: torch.device, side: int = MATRIX_SIDE) -> float:
    """Dense TFLOP/s of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device) / 1e12


def copy_tb(device: torch.device, numel: int) -> float:
    """TB/s read and written by a copy on the device of so many float32 numbers."""
    source = torch.zeros(numel, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device) / 1e12
