"""Batches of planned rows to codes: some threads decode images ahead, others encode batches.

A batch always has its full size and each row a fixed place in it, blank where there is no image.
So the codes of a row depend on nothing but its own image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.device_memory import memory_errors_explained
from ops.heartbeat import Heartbeat
from ops.images import ImageError
from ops.precision import Precision
from ops.transient_errors import is_transient, retried
from ops.web_paths import is_remote
from pipelines.encoding.forward import EncoderForward
from pipelines.encoding.raster_buffers import HostToDevice, RasterBuffers
from pipelines.encoding.sources import Row, RowSource, Size
from pipelines.inputs import content_hash, read_bytes
from pipelines.store import OK, IndexLine
from tokenizer import NO_CODE, NOT_FINITE, VQGAN, NonFiniteLatentsError

READ_AHEAD = 2  # batches, or images a decoding thread, decoded beyond those being encoded
READERS = 32  # threads that read remote images: they wait for the network
REMEDY = (
    "Free the GPU, use one with more memory, or make a new store with a smaller --batch-size: it "
    "is fixed when a store is made."
)
READ_FAILED = {OSError: "unreadable", Exception: "broken"}


class Reading(NamedTuple):
    """A batch whose images are being decoded."""

    rasters: Tensor  # (B, H, W, ...) as the source has them
    lines: dict[int, Future[IndexLine]]  # by place in the batch


class PendingCodes(NamedTuple):
    """Codes (B, h, w) that may still be copied from a GPU."""

    codes: Tensor  # on the CPU
    copied: torch.cuda.Event | None

    def numpy(self) -> np.ndarray[Any, Any]:
        """The codes, once they are there; raises DeviceMemoryError where the GPU had no memory."""
        with memory_errors_explained(REMEDY):  # a GPU's errors show here
            if self.copied is not None:
                self.copied.synchronize()
        return self.codes.numpy()


class BatchEncoder:
    """One process's tokenizer and its threads for decoding and encoding.

    `concurrent_batches` are encoded at a time, each on `threads` torch threads; on a GPU one thread
    submits them, and while the GPU computes one, the next is copied to it and those after are
    decoded. `compiled` are the sizes of views whose encoder is compiled. A blank batch is encoded
    first, so that a process in which the tokenizer does not work fails when it starts and not at
    some image.
    """

    def __init__(
        self,
        tokenizer: VQGAN,
        source: RowSource,
        *,
        batch_size: int,
        threads: int,
        concurrent_batches: int,
        decoders: int,
        precision: Precision = "float32",
        compiled: Collection[Size] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.batch_size = batch_size
        self.device = next(tokenizer.parameters()).device
        on_gpu = self.device.type == "cuda"
        # A GPU has always a batch to go on with when the codes of one are fetched.
        self.most_submitted = concurrent_batches + on_gpu
        self.read_ahead = max(READ_AHEAD, -(-READ_AHEAD * decoders // batch_size))
        self._buffers = RasterBuffers(self.device)
        self._to_device = HostToDevice(self.device)
        self._forward = EncoderForward(tokenizer, precision, compiled)
        self.heartbeat = Heartbeat()
        if not on_gpu and not compiled:  # elsewhere a batch takes seconds
            self.heartbeat.follow(tokenizer)
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._decoders = ThreadPoolExecutor(decoders, "decode")
        self._encoders = ThreadPoolExecutor(
            concurrent_batches, "encode", torch.set_num_threads, (threads,)
        )
        side = source.transform.image_size
        blank = self.encode(self.read({}, (side, side))).result().numpy()
        if (blank == NO_CODE).any():
            raise NonFiniteLatentsError(f"{tokenizer.folder}: of a blank image {NOT_FINITE}")

    def read(self, rows: Mapping[int, Row], size: Size) -> Reading:
        """Begin to decode `rows`, by place in the batch, to images of `size`."""
        shape = (self.batch_size, *size, *self.source.raster_shape)
        rasters = self._buffers.take(shape, self.source.raster_dtype)
        each = rasters.numpy()
        for place in set(range(self.batch_size)).difference(rows):
            each[place] = 0
        lines = {
            place: self._decoders.submit(self._read, row, self._data(row), size, each[place])
            for place, row in rows.items()
        }
        return Reading(rasters, lines)

    def encode(self, reading: Reading) -> Future[PendingCodes]:
        """Encode a batch once it is decoded and an encoding thread is free."""
        return self._encoders.submit(self._encode, reading)

    def stop(self) -> None:
        """Finish the batches that are being encoded, and begin no other."""
        self._readers.shutdown(wait=False)  # a cancelled read would count as one that failed
        for pool in (self._decoders, self._encoders):
            pool.shutdown(wait=False, cancel_futures=True)

    def _data(self, row: Row) -> Callable[[], bytes]:
        """A function that gives the bytes of a row's file; remote ones are read from now on."""
        read = partial(read_bytes, row["uri"], row["offset"], row["size"], row["etag"])
        return self._readers.submit(read).result if is_remote(row["uri"]) else read

    def _read(
        self,
        row: Row,
        read: Callable[[], bytes],
        size: Size,
        target: np.ndarray[Any, Any],
    ) -> IndexLine:
        """Put one raster into `target` (H, W, ...); an error becomes the row's status.

        A transient one is raised, so that the task fails and is tried again.
        """
        content = None
        try:
            self.source.check(row)
            data = read()
            content = content_hash(data)
            found = retried(partial(self.source.read, data, row, size), row["uri"])
            target[:] = found.raster
        except Exception as error:
            target[:] = 0  # as where there is no image
            if isinstance(error, ImageError):
                return IndexLine(None, None, error.reason, str(error), content)
            if is_transient(error):
                raise
            reason = next(why for kind, why in READ_FAILED.items() if isinstance(error, kind))
            return IndexLine(None, None, reason, f"{type(error).__name__}: {error}", content)
        finally:
            self.heartbeat.beat()
        return IndexLine(found.width, found.height, OK, found.note, content)

    def _encode(self, reading: Reading) -> PendingCodes:
        for line in reading.lines.values():
            line.result()
        rasters = reading.rasters
        with torch.inference_mode(), memory_errors_explained(REMEDY):
            batch = self._to_device(self.source.samples(rasters))
            codes = self._forward(self.source.pixels(batch.samples))
            self._buffers.give_back(rasters, batch.copied)
            if self.device.type != "cuda":
                return PendingCodes(codes, None)
            # Not waited for here: this thread submits the next batch meanwhile.
            on_cpu = torch.empty_like(codes, device="cpu", pin_memory=True)
            on_cpu.copy_(codes, non_blocking=True)
            copied = torch.cuda.Event(blocking=True)  # who waits for it must not take a core
            copied.record(torch.cuda.current_stream(self.device))
            return PendingCodes(on_cpu, copied)
