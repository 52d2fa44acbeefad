"""Where and how computations run: device, autocast, threads, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ops.config import ConfigError

KEPT_BYTES = 1 << 30
# Parameters of mallopt, from <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def resolve_device(name: str) -> torch.device:
    """The device called `name`: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".

    Raises ConfigError for a name torch does not know or a GPU this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"No device {name!r}. Use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"Device {name!r} is not on this machine. Use cpu or auto.")
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that tensors on a device can still take; of a CPU, the machine's physical memory."""
    if device.type != "cuda":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in page-locked memory if `device` is a GPU: its copy can overlap computation."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def use_threads(threads: int | None) -> None:
    """Set the number of threads torch computes on; None leaves torch's own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def threads_restored() -> Iterator[None]:
    """Give this process its number of torch threads back after the body."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory; without glibc, do nothing.

    By default glibc maps memory for each tensor above 32 MB and unmaps it when it is freed, so that
    the kernel clears the pages of every activation: a sixth of the time of an encode by the paper's
    network on a CPU. One arena, since those of threads hold at most 64 MB each.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
