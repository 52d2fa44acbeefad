"""RasterBuffers: host memory for batches of rasters, used again once a batch is on the device.

HostToDevice copies from it while the device computes.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Copied(Protocol):
    """A moment of a device's queue: a torch.cuda.Event."""

    def query(self) -> bool:
        """Whether the device has come so far."""


class RasterBuffers:
    """Tensors in host memory, page-locked for a GPU; safe to use in several threads.

    One that was given back is taken again only when the device has copied it. So there are as many
    as batches are under way at once. Those of another shape are dropped: a job has long runs of
    batches of one shape.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._lock = threading.Lock()
        self._returned: list[tuple[Tensor, Copied | None]] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape, with whatever was in it before."""
        with self._lock:
            self._returned = [
                (tensor, copied)
                for tensor, copied in self._returned
                if tensor.shape == shape and tensor.dtype == dtype
            ]
            for place, (tensor, copied) in enumerate(self._returned):
                if copied is None or copied.query():
                    del self._returned[place]
                    return tensor
        return torch.empty(shape, dtype=dtype, pin_memory=self._pinned)

    def give_back(self, tensor: Tensor, copied: Copied | None) -> None:
        """Let a tensor be taken again, as soon as the device is past `copied`."""
        with self._lock:
            self._returned.append((tensor, copied))


class OnDevice(NamedTuple):
    """A batch on the device."""

    samples: Tensor
    copied: Copied | None  # after which its host memory may change; None: already


class HostToDevice:
    """Copies batches to a device: to a GPU on a stream of its own, while it computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, samples: Tensor) -> OnDevice:
        """The samples on the device, for use on its current stream; the host does not wait."""
        if self._stream is None:
            return OnDevice(samples.to(self.device), None)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            on_device = samples.to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        computing.wait_event(copied)
        # Or the allocator could give its memory to the next copy while this batch is computed.
        on_device.record_stream(computing)
        return OnDevice(on_device, copied)
