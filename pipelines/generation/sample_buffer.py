"""The samples of one task while they come to be, and what of them outlasts a kill."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.generation.index import NOT_SAMPLED, OK
from pipelines.store import (
    code_dtype,
    fill_value,
    grid_name,
    read_partial_shards,
    write_partial_shard,
)

Codes = np.ndarray[Any, Any]


class Line(NamedTuple):
    """What is known of a sample beside its codes."""

    status: str
    error: str | None = None
    codes_hash: str | None = None  # sha256 of its codes
    checksum: str | None = None  # and of its PNG, once there is one


LINE_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in Line._fields])


class SampleBuffer:
    """Codes and lines of the samples of one task; of those not put, codes are fill."""

    def __init__(
        self, number: int, samples: range, shape: tuple[int, int], codebook_size: int
    ) -> None:
        dtype = code_dtype(codebook_size)
        self.fill = fill_value(dtype)
        self.number, self.samples, self.shape = number, samples, shape
        self.codes = np.full((len(samples), *shape), self.fill, dtype)
        self.lines = [Line(NOT_SAMPLED)] * len(samples)
        self.partial: dict[int, Codes] = {}  # (h, w) by sample: the first rows of it, then fill

    def put(self, sample: int, line: Line, codes: Codes | None = None) -> None:
        """What became of a sample: its line and its codes (h, w)."""
        place = self.samples.index(sample)
        self.lines[place] = line
        if codes is not None:
            self.codes[place] = codes

    def line(self, sample: int) -> Line:
        return self.lines[self.samples.index(sample)]

    def codes_of(self, sample: int) -> Codes:
        """(h, w), as stored."""
        codes: Codes = self.codes[self.samples.index(sample)]
        return codes

    def finished_rows(self, sample: int) -> int:
        """How many of the first rows of a sample are known, though not all are."""
        codes = self.partial.get(sample)
        return 0 if codes is None else int((codes[:, 0] != self.fill).sum())

    def sampled(self) -> list[int]:
        """The samples that are whole."""
        pairs = zip(self.samples, self.lines, strict=True)
        return [sample for sample, line in pairs if line.status == OK]

    def missing(self, first: int, end: int) -> list[int]:
        """The samples from `first` to before `end` of which nothing is known yet."""
        return [s for s in range(first, end) if self.line(s).status == NOT_SAMPLED]


def read_buffer(
    out: Path, number: int, samples: range, shape: tuple[int, int], codebook_size: int
) -> SampleBuffer:
    """The task's draft with all that earlier attempts have kept of it."""
    buffer = SampleBuffer(number, samples, shape, codebook_size)
    for partial_shard in read_partial_shards(out, grid_name(*shape), number):
        columns = [partial_shard.index[name].to_pylist() for name in Line._fields]
        for place, values in enumerate(zip(*columns, strict=True), partial_shard.first):
            line, codes = Line(*values), partial_shard.codes["image"][place - partial_shard.first]
            if place < len(samples) and line.status != NOT_SAMPLED:
                buffer.put(samples[place], line, codes)
            elif place < len(samples) and codes[0, 0] != buffer.fill:
                buffer.partial[samples[place]] = codes
    return buffer


def keep(out: Path, buffer: SampleBuffer, first: int, end: int) -> None:
    """Make the samples from `first` to before `end` outlast this process, as far as known."""
    begin, stop = buffer.samples.index(first), buffer.samples.index(end - 1) + 1
    lines = pa.Table.from_pylist(
        [line._asdict() for line in buffer.lines[begin:stop]], schema=LINE_SCHEMA
    )
    codes = {"image": buffer.codes[begin:stop]}
    write_partial_shard(out, grid_name(*buffer.shape), buffer.number, begin, codes, lines)


def keep_partial(out: Path, buffer: SampleBuffer, sample: int, codes: Codes) -> None:
    """Make the first rows of a sample's codes (h, w), then fill, outlast this process."""
    place = buffer.samples.index(sample)
    lines = pa.Table.from_pylist([Line(NOT_SAMPLED)._asdict()], schema=LINE_SCHEMA)
    # Under the name that the sample by itself would have: whatever is known next takes its place.
    write_partial_shard(
        out, grid_name(*buffer.shape), buffer.number, place, {"image": codes[None]}, lines
    )


def codes_hash(codes: Codes) -> str:
    """SHA-256, in hex, of codes (h, w) as stored: row by row, little-endian."""
    return hashlib.sha256(codes.tobytes()).hexdigest()
