"""RasterBuffers: no batch that the device still has to copy is taken again."""

from __future__ import annotations

import threading
import time

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from pipelines.encoding.raster_buffers import HostToDevice, RasterBuffers

SHAPE = (2, 4, 4, 3)


class Copy:
    """A copy that ends when `done` is set."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


def buffers() -> RasterBuffers:
    return RasterBuffers(torch.device("cpu"))


@hypothesis.given(steps=st.lists(st.sampled_from(["take", "give back", "copied"]), max_size=60))
def test_what_is_under_way_is_never_taken(steps: list[str]) -> None:
    pool, seen = buffers(), set()
    held: list[Tensor] = []
    copying: list[tuple[Tensor, Copy]] = []
    most = 0
    for step in steps:
        if step == "take":
            tensor = pool.take(SHAPE, torch.uint8)
            under_way = [*held, *(each for each, _ in copying)]
            assert all(tensor.data_ptr() != each.data_ptr() for each in under_way)
            held.append(tensor)
            seen.add(tensor.data_ptr())
            most = max(most, len(under_way) + 1)
        elif step == "give back" and held:
            copying.append((held.pop(0), Copy()))
            pool.give_back(*copying[-1])
        elif step == "copied" and copying:
            copying.pop(0)[1].done = True
    assert len(seen) <= most  # no more memory than was under way at once


def test_another_shape_or_type_is_another_buffer() -> None:
    pool = buffers()
    first = pool.take(SHAPE, torch.uint8)
    pool.give_back(first, None)
    assert pool.take((2, 4, 8, 3), torch.uint8).shape == (2, 4, 8, 3)
    assert pool.take(SHAPE, torch.float32).dtype == torch.float32
    pool.give_back(first, None)
    assert pool.take(SHAPE, torch.uint8) is first


class SlowDevice:
    """Reads a batch some time after it was given, one after another, as a GPU does."""

    def __init__(self) -> None:
        self.found: list[list[int]] = []
        self._queue: list[tuple[Tensor, Copy]] = []
        self._more = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._copy)
        self._thread.start()

    def submit(self, tensor: Tensor) -> Copy:
        self._queue.append((tensor, Copy()))
        self._more.release()
        return self._queue[-1][1]

    def stop(self) -> None:
        self._queue.append((torch.empty(0), Copy()))
        self._more.release()
        self._thread.join()

    def _copy(self) -> None:
        while True:
            self._more.acquire()
            tensor, copy = self._queue.pop(0)
            if not len(tensor):
                return
            time.sleep(0.002)
            self.found.append(tensor.unique().tolist())
            copy.done = True


def test_a_slow_device_finds_every_batch_as_it_was_submitted() -> None:
    pool, device, addresses = buffers(), SlowDevice(), set()
    for number in range(40):
        tensor = pool.take(SHAPE, torch.uint8)
        addresses.add(tensor.data_ptr())
        tensor.fill_(number)
        pool.give_back(tensor, device.submit(tensor))
        time.sleep(0.001 * (number % 4))
    device.stop()
    assert device.found == [[number] for number in range(40)]
    assert len(addresses) < 40


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.zeros(SHAPE)
    samples, copied = HostToDevice(torch.device("cpu"))(tensor)
    assert samples is tensor
    assert copied is None
