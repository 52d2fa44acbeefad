"""Where and how computations run: device, autocast, threads, memory; and a run's metrics log."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

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


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast on a GPU; nothing on a CPU, where bfloat16 products are far slower."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


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


class MetricsLog:
    """A run's metrics and images: `metrics.jsonl` and TensorBoard events.

    On resume, lines of steps after `after_step` are dropped, since these steps will be repeated.
    """

    def __init__(self, run: Path, after_step: int = 0) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.path = run / "metrics.jsonl"
        self._keep_until(after_step)
        self._file = open(self.path, "a")  # noqa: SIM115 - closed by __exit__
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=after_step + 1)

    def _keep_until(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines()
        # A kill can leave the last line incomplete; its step will be repeated.
        whole = [line for line in lines if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        rewritten = self.path.with_suffix(".partial")
        rewritten.write_text("".join(line + "\n" for line in kept))
        os.replace(rewritten, self.path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line with `step` and the metrics."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image, uint8 (H, W, 3), for TensorBoard."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, without one that a kill left incomplete."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
