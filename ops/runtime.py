"""Where and how computations run: device, autocast, threads, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ops.config import ConfigError

KEPT_BYTES = 1 << 30
# Parameters of mallopt, from <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def named_device(name: str) -> torch.device:
    """The device "cpu", "cuda" or "cuda:1", whether it exists or not.

    Raises ConfigError for a name that torch does not know.
    """
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"No device {name!r}. Use auto, cpu, cuda or cuda:N.") from None


def resolve_device(name: str) -> torch.device:
    """The device called `name`: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".

    Raises ConfigError for other names, and for a GPU that torch cannot use on this machine, with
    the reason.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = named_device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Device {name!r} is not on this machine, {platform.node()}: {_why_no_gpu()}. Use "
            "--device cpu or auto, or mend that."
        )
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that tensors on a device can still take; of a CPU, the machine's physical memory."""
    if device.type != "cuda":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _why_no_gpu() -> str:
    """Why torch has no GPU here, or not so many."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    found = torch.cuda.device_count()
    if found:
        return f"torch sees {found} of them"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the driver is missing, or too old
        return str(error).strip().partition(". ")[0].rstrip(".")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"torch sees none (CUDA_VISIBLE_DEVICES is {visible!r})"


def compute_repeatably() -> None:
    """Make a GPU compute the same bits again, as far as the kernels of a forward pass decide it.

    To be called before the process uses a GPU: cuBLAS reads its workspace's size when it starts.
    cuDNN then takes its first algorithm that always gives the same bits, and times none. Backward
    passes are not covered: some add up in the order in which threads come.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def describe_environment(device: torch.device) -> dict[str, str]:
    """What decides how results on `device` are rounded, apart from settings: its type and name
    (the GPU's or CPU's model), the version of torch, and of CUDA and cuDNN on a GPU."""
    found = {
        "device": device.type,
        "device_name": _cpu_name(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(device)
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
