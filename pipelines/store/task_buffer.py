"""TaskBuffer: the rows of one task while they are made, and what of them outlasts a kill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from ops.paths import AnyPath
from pipelines.store.commit import INDEX_SCHEMA
from pipelines.store.environments import MadeIn, grouped_environments
from pipelines.store.partial import read_partial_shards, write_partial_shard
from pipelines.store.shards import row_checksums
from pipelines.store.zarr_metadata import RowForm, fill_value

# Statuses; any other names the reason of a failure.
OK, CRASHED, STALLED = "ok", "crashed", "stalled"
PLANNED = (
    "key",
    "grid",
    "row",
    "view",
    "label",
    "replaces",
    "caption",
    "carried",
)  # in the index as in the plan

Codes = np.ndarray[Any, Any]


class RowLine(Protocol):
    """A NamedTuple that describes a row apart from its codes."""

    @property
    def status(self) -> str: ...

    def _asdict(self) -> dict[str, Any]: ...


L = TypeVar("L", bound=RowLine)


class TaskBuffer(Generic[L]):
    """Codes and lines of a task's rows, by place in the task; rows not put are fill and None.

    `keep` writes some rows to a partial shard below `root`; `read_kept` reads them all back. Lines
    are `line_type`, a NamedTuple with the fields of `line_schema`, every one nullable. Rows that
    are put are made in `environment`, a text from describe(); "" where no device is involved.
    """

    def __init__(
        self,
        root: AnyPath,
        grid: str,
        task: int,
        *,
        num_rows: int,
        form: RowForm,
        line_type: type[L],
        line_schema: pa.Schema,
        environment: str = "",
    ) -> None:
        self.environment = environment
        #: For each place the environments in which the row was made: of one that was begun in
        #: another, both.
        self.made_in: list[tuple[str, ...]] = [()] * num_rows
        self.root, self.grid, self.task = root, grid, task
        self.fill = fill_value(form.dtype)
        self.codes = np.full((num_rows, *form.shape), self.fill, form.dtype)
        self.lines: list[L | None] = [None] * num_rows
        #: Codes (h, w) of rows that are not whole: the first rows of the grid, then fill.
        self.begun: dict[int, Codes] = {}
        self.num_put = 0
        self.num_failed = 0
        self._line_type, self._line_schema = line_type, line_schema

    def put(self, place: int, line: L, codes: Codes | None = None) -> None:
        """Set a row's line and, where its status is ok, its codes (h, w)."""
        assert codes is None or line.status == OK
        older = self.lines[place]
        self.num_put += older is None
        self.num_failed += (line.status != OK) - (older is not None and older.status != OK)
        self.lines[place] = line
        if codes is not None:
            self.codes[place] = codes
        self._add_environment(place)

    def _add_environment(self, place: int) -> None:
        if self.environment and self.environment not in self.made_in[place]:
            self.made_in[place] = (*self.made_in[place], self.environment)

    def environments(self) -> list[MadeIn]:
        """The environments in which the rows were made, with their places."""
        return grouped_environments(self.made_in)

    def missing(self, first: int, end: int) -> list[int]:
        """The places from `first` to before `end` that have not been put."""
        return [place for place in range(first, end) if self.lines[place] is None]

    def count(self, first: int, end: int) -> tuple[int, int]:
        """(rows put, rows of these that failed) among the places from `first` to before `end`."""
        statuses = [line.status for line in self.lines[first:end] if line is not None]
        return len(statuses), len(statuses) - statuses.count(OK)

    def keep(self, first: int, end: int) -> None:
        """Write the rows from `first` to before `end` to a partial shard; None stays None."""
        rows = [{} if line is None else line._asdict() for line in self.lines[first:end]]
        self._write(first, self.codes[first:end], rows)

    def keep_begun(self, place: int, codes: Codes) -> None:
        """Write the first rows of the codes (h, w) of one row, then fill, to a partial shard."""
        self._add_environment(place)
        # Under the name of a partial shard of this one row: the whole row will replace it.
        self._write(place, codes[None], [{}])

    def _write(self, first: int, codes: Codes, lines: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(lines, schema=self._line_schema)
        made_in = self.made_in[first : first + len(lines)]
        write_partial_shard(self.root, self.grid, self.task, first, codes, table, made_in)

    def read_kept(self) -> None:
        """Put every row that earlier attempts have kept; files of other rows are ignored."""
        for shard in read_partial_shards(self.root, self.grid, self.task):
            as_here = shard.codes.dtype == self.codes.dtype and (
                shard.codes.shape[1:] == self.codes.shape[1:]
            )
            if not as_here or shard.first < 0 or shard.lines.schema != self._line_schema:
                continue
            for place, values in enumerate(shard.lines.to_pylist(), shard.first):
                if place < len(self.lines):
                    within = place - shard.first
                    self._put_kept(place, values, shard.codes[within], shard.made_in[within])

    def _put_kept(
        self, place: int, values: dict[str, Any], codes: Codes, made_in: tuple[str, ...]
    ) -> None:
        if values["status"] is not None:
            line = self._line_type(**values)
            self.put(place, line, codes if line.status == OK else None)
        elif codes[0, 0] != self.fill:
            self.begun[place] = codes
        else:
            return
        self.made_in[place] = made_in

    def quarantine(self, place: int, line: L) -> None:
        """Record the remaining row as given up, so that the next attempt skips it."""
        self.put(place, line)
        self.keep(place, place + 1)


class IndexLine(NamedTuple):
    """A row's entries in the index that follow neither from the plan nor from its codes."""

    width: int | None
    height: int | None
    status: str  # "ok", or a short reason
    error: str | None
    content: str | None  # hash of the image file's bytes, where they could be read


INDEX_LINE_SCHEMA = pa.schema(
    [INDEX_SCHEMA.field(name).with_nullable(True) for name in IndexLine._fields]
)


def index_buffer(
    root: AnyPath, grid: str, task: int, num_rows: int, form: RowForm, environment: str = ""
) -> TaskBuffer[IndexLine]:
    """An empty buffer of rows whose lines go into the index of the store at `root`."""
    return TaskBuffer(
        root,
        grid,
        task,
        num_rows=num_rows,
        form=form,
        line_type=IndexLine,
        line_schema=INDEX_LINE_SCHEMA,
        environment=environment,
    )


def index_table(planned: pa.Table, lines: Sequence[IndexLine | None], codes: Codes) -> pa.Table:
    """INDEX_SCHEMA of rows by their plan (PLAN_SCHEMA), their lines and their codes (n, h, w)."""
    put = [line for line in lines if line is not None]
    assert len(put) == len(planned), "a row is missing"
    columns = {name: planned[name] for name in PLANNED}
    columns["source"] = planned["uri"]
    columns["checksum"] = pa.array(row_checksums(codes), pa.uint32())
    for name, values in zip(IndexLine._fields, zip(*put, strict=True), strict=True):
        columns[name] = pa.array(values, INDEX_SCHEMA.field(name).type)
    return pa.table({name: columns[name] for name in INDEX_SCHEMA.names}).cast(INDEX_SCHEMA)
