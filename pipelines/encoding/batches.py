"""Batches of planned rows to codes: some threads decode ahead, others encode side by side.

A batch always has its full size, and each row its fixed place in it, empty where there is no
picture. So the codes of a row depend on nothing but its own picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.images import ImageError
from ops.runtime import pinned
from pipelines.encoding.sources import Row, RowSource, Size
from pipelines.inputs import content_hash, read_bytes
from pipelines.store import Line
from tokenizer import VQGAN

READ_FAILED = {MemoryError: "out of memory", OSError: "unreadable", Exception: "broken"}


class Reading(NamedTuple):
    """A batch on its way to pictures."""

    rasters: Tensor  # (B, H, W, ...) as the source has them
    lines: dict[int, Future[Line]]  # by place in the batch


class CodesToCome(NamedTuple):
    """Codes (B, h, w) that may still be on their way from a GPU."""

    codes: Tensor  # on the CPU
    arrival: torch.cuda.Event | None

    def numpy(self) -> np.ndarray[Any, Any]:
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.codes.numpy()


class BatchEncoder:
    """One process's threads for decoding and encoding, and the tokenizer that they use.

    `lanes` batches are encoded at a time, each on `threads` threads of torch's. The first batch
    is encoded here and thrown away: a process in which the tokenizer does not work fails to
    start, rather than at somebody's images.
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
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.batch_size = batch_size
        self.concurrent_batches = concurrent_batches
        self.device = next(tokenizer.parameters()).device
        self._decoders = ThreadPoolExecutor(decoders, "decode")
        self._encoders = ThreadPoolExecutor(
            concurrent_batches, "encode", torch.set_num_threads, (threads,)
        )
        side = source.transform.image_size
        self.encode(self.read({}, (side, side))).result().numpy()

    def read(self, rows: Mapping[int, Row], size: Size) -> Reading:
        """Begin to decode `rows`, by place in the batch, to pictures of `size`."""
        rasters = pinned(self.source.blank(self.batch_size, size), self.device)
        lines = {
            place: self._decoders.submit(self._read, row, size, rasters[place].numpy())
            for place, row in rows.items()
        }
        return Reading(rasters, lines)

    def encode(self, reading: Reading) -> Future[CodesToCome]:
        """Encode a batch once it is decoded and those begun before it leave a lane free."""
        return self._encoders.submit(self._encode, reading)

    def stop(self) -> None:
        """Let the batches end that are being encoded, and begin no other."""
        for pool in (self._decoders, self._encoders):
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, row: Row, size: Size, target: np.ndarray[Any, Any]) -> Line:
        """Put one raster into `target` (H, W, ...); whatever goes wrong is the row's line."""
        content = None
        try:
            self.source.check(row)
            data = read_bytes(row["uri"], row["offset"], row["size"], row["etag"])
            content = content_hash(data)
            target[:], width, height = self.source.read(data, row, size)
        except ImageError as error:
            return Line(None, None, error.reason, str(error), content)
        except Exception as error:
            reason = next(why for kind, why in READ_FAILED.items() if isinstance(error, kind))
            return Line(None, None, reason, f"{type(error).__name__}: {error}", content)
        return Line(width, height, "ok", None, content)

    def _encode(self, reading: Reading) -> CodesToCome:
        for line in reading.lines.values():
            line.result()
        with torch.inference_mode():
            codes = self.tokenizer.encode(self.source.pixels(reading.rasters, self.device))
            if self.device.type != "cuda":
                return CodesToCome(codes.cpu(), None)
            # This thread goes on to the next batch while the GPU is at this one.
            arrived = torch.empty_like(codes, device="cpu", pin_memory=True)
            arrived.copy_(codes, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record(torch.cuda.current_stream(self.device))
            return CodesToCome(arrived, arrival)
