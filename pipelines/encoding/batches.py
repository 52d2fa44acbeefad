"""Batches of planned rows to codes: some threads decode images ahead, others encode batches.

A batch always has its full size and each row a fixed place in it, blank where there is no image.
So the codes of a row depend on nothing but its own image.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.images import ImageError
from ops.precision import Precision
from ops.runtime import pinned
from ops.transient_errors import is_transient, retried
from pipelines.encoding.sources import Row, RowSource, Size
from pipelines.inputs import content_hash, read_bytes
from pipelines.store import OK, IndexLine
from tokenizer import NO_CODE, NOT_FINITE, VQGAN, NonFiniteLatentsError

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
        if self.copied is not None:
            self.copied.synchronize()
        return self.codes.numpy()


class BatchEncoder:
    """One process's tokenizer and its threads for decoding and encoding.

    `concurrent_batches` are encoded at a time, each on `threads` torch threads. A blank batch is
    encoded first, so that a process in which the tokenizer does not work fails when it starts and
    not at some image.
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
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.batch_size = batch_size
        self.concurrent_batches = concurrent_batches
        self.precision: Precision = precision
        self.device = next(tokenizer.parameters()).device
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
        rasters = pinned(self.source.blank(self.batch_size, size), self.device)
        lines = {
            place: self._decoders.submit(self._read, row, size, rasters[place].numpy())
            for place, row in rows.items()
        }
        return Reading(rasters, lines)

    def encode(self, reading: Reading) -> Future[PendingCodes]:
        """Encode a batch once it is decoded and an encoding thread is free."""
        return self._encoders.submit(self._encode, reading)

    def stop(self) -> None:
        """Finish the batches that are being encoded, and begin no other."""
        for pool in (self._decoders, self._encoders):
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, row: Row, size: Size, target: np.ndarray[Any, Any]) -> IndexLine:
        """Put one raster into `target` (H, W, ...); an error becomes the row's status.

        A transient one is raised, so that the task fails and is tried again.
        """
        content = None
        try:
            self.source.check(row)
            data = read_bytes(row["uri"], row["offset"], row["size"], row["etag"])
            content = content_hash(data)
            found = retried(partial(self.source.read, data, row, size), row["uri"])
            target[:] = found.raster
        except ImageError as error:
            return IndexLine(None, None, error.reason, str(error), content)
        except Exception as error:
            if is_transient(error):
                raise
            reason = next(why for kind, why in READ_FAILED.items() if isinstance(error, kind))
            return IndexLine(None, None, reason, f"{type(error).__name__}: {error}", content)
        return IndexLine(found.width, found.height, OK, found.note, content)

    def _encode(self, reading: Reading) -> PendingCodes:
        for line in reading.lines.values():
            line.result()
        with torch.inference_mode():
            codes = self.tokenizer.encode(
                self.source.pixels(reading.rasters, self.device),
                check=False,
                precision=self.precision,
            )
            if self.device.type != "cuda":
                return PendingCodes(codes.cpu(), None)
            # Not waited for here: this thread submits the next batch meanwhile.
            on_cpu = torch.empty_like(codes, device="cpu", pin_memory=True)
            on_cpu.copy_(codes, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
            return PendingCodes(on_cpu, copied)
