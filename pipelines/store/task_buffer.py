"""The rows of one task while they come to be: codes and index lines, out of batches or pieces."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.store.commit import INDEX_SCHEMA
from pipelines.store.layout import RowForm, fill_value
from pipelines.store.partial import PartialShard
from pipelines.store.shards import row_checksums

PLANNED = ("key", "grid", "row", "view", "label", "replaces")  # in the index as in the plan


class Line(NamedTuple):
    """What the index says of a row beyond the plan and its codes."""

    width: int | None
    height: int | None
    status: str  # "ok", or a short reason
    error: str | None
    content: str | None  # hash of the image file's bytes, where they could be read


class TaskBuffer:
    """Codes and lines of a task's rows, by their place in the task; rows not put are fill."""

    def __init__(self, planned: pa.Table, track: str, form: RowForm) -> None:
        self.planned = planned
        self.track = track
        self.codes = np.full((len(planned), *form.shape), fill_value(form.dtype), form.dtype)
        self.lines: list[Line | None] = [None] * len(planned)
        self.num_put = 0
        self.num_failed = 0

    def put(self, place: int, line: Line, codes: np.ndarray[Any, Any] | None) -> None:
        """One row: its codes (h, w) where its line says ok, none otherwise."""
        assert (codes is not None) == (line.status == "ok")
        older = self.lines[place]
        self.num_put += older is None
        self.num_failed += (codes is None) - (older is not None and older.status != "ok")
        self.lines[place] = line
        if codes is not None:
            self.codes[place] = codes

    def put_partial_shard(self, partial_shard: PartialShard) -> None:
        """All rows of a piece that somebody has done before."""
        columns = [partial_shard.index[name].to_pylist() for name in Line._fields]
        for place, values in enumerate(zip(*columns, strict=True)):
            line = Line(*values)
            codes = partial_shard.codes[self.track][place] if line.status == "ok" else None
            self.put(partial_shard.first + place, line, codes)

    def missing(self, first: int, end: int) -> list[int]:
        """The places from `first` to before `end` that have not been put."""
        return [place for place in range(first, end) if self.lines[place] is None]

    def index(self, first: int, end: int) -> pa.Table:
        """INDEX_SCHEMA for the rows from `first` to before `end`, which have all been put."""
        planned = self.planned.slice(first, end - first)
        lines = [line for line in self.lines[first:end] if line is not None]
        columns = {name: planned[name] for name in PLANNED}
        columns["source"] = planned["uri"]
        columns["checksum"] = pa.array(row_checksums(self.codes[first:end]), pa.uint32())
        for name, values in zip(Line._fields, zip(*lines, strict=True), strict=True):
            columns[name] = pa.array(values, INDEX_SCHEMA.field(name).type)
        return pa.table({name: columns[name] for name in INDEX_SCHEMA.names}).cast(INDEX_SCHEMA)
