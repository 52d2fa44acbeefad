"""SampleBuffer: the samples of one task while they are made, and what of them outlasts a kill."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.generation.index import NOT_SAMPLED
from pipelines.generation.settings import GenerationRequest
from pipelines.store import OK, RowForm, TaskBuffer, grid_name

Codes = np.ndarray[Any, Any]


class SampleLine(NamedTuple):
    """A sample's entries in the index that do not follow from the request."""

    status: str
    error: str | None = None
    codes_hash: str | None = None  # sha256 of its codes
    checksum: str | None = None  # sha256 of its PNG, once there is one


class SampleBuffer(TaskBuffer[SampleLine]):
    """Codes and lines of one task's samples, by place in the task."""

    def __init__(self, request: GenerationRequest, number: int, environment: str = "") -> None:
        #: The task's samples; the place of sample k is k - samples.start.
        self.samples = request.samples_of(number)
        super().__init__(
            request.out,
            grid_name(*request.shape),
            number,
            num_rows=len(self.samples),
            form=RowForm(request.shape, request.dtype),
            line_type=SampleLine,
            line_schema=pa.schema([(name, pa.string()) for name in SampleLine._fields]),
            environment=environment,
        )

    def index_lines(self) -> list[SampleLine]:
        """A line for every sample; samples not put are NOT_SAMPLED."""
        return [line or SampleLine(NOT_SAMPLED) for line in self.lines]

    def sampled(self) -> list[int]:
        """The places of the samples whose status is ok."""
        return [place for place, line in enumerate(self.index_lines()) if line.status == OK]

    def finished_rows(self, place: int) -> int:
        """How many first rows of an unfinished sample's codes are known."""
        codes = self.begun.get(place)
        return 0 if codes is None else int((codes[:, 0] != self.fill).sum())


def read_buffer(request: GenerationRequest, number: int, environment: str = "") -> SampleBuffer:
    """A task's buffer with the samples that earlier attempts have kept."""
    buffer = SampleBuffer(request, number, environment)
    buffer.read_kept()
    return buffer


def codes_hash(codes: Codes) -> str:
    """SHA-256, in hex, of codes (h, w) as stored: row by row, little-endian."""
    return hashlib.sha256(codes.tobytes()).hexdigest()
