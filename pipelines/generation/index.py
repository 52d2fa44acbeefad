"""The index of a folder of samples: one line a sample, one Parquet file a task.

    samples/generation.json        the settings that decide the samples
      index/00000.parquet          the lines of task 0; pyarrow.parquet.read_table("index") has all
      sample-00000.png             --save images
      tars/00000.tar               --save tars: the samples of task 0
      codes.zarr/                  --save codes: row k is sample k
      _staging/                    unfinished samples

A task's file appears once all files it lists are complete, so the unfinished tasks are known from
the names of these files alone, however many samples there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops import paths
from ops.config import UserError
from ops.paths import AnyPath, P, join
from pipelines.store import (
    CRASHED,
    OK,
    STALLED,
    MadeIn,
    StoreError,
    checked_table,
    corrupt_as,
    described_environments,
    description_metadata,
    open_parquet,
    parquet_bytes,
    parse_environments,
    read_description,
    staging_path,
)

PART_NAME = re.compile(r"[0-9]{5,9}\.parquet")
NOT_SAMPLED = "not sampled"  # the status of samples that --only left out
GIVEN_UP = (CRASHED, STALLED)

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("status", pa.string(), nullable=False),  # OK, one of GIVEN_UP or NOT_SAMPLED
        pa.field("error", pa.string()),
        pa.field("file", pa.string()),  # that has the image: its PNG, or else its tar
        pa.field("checksum", pa.string()),  # sha256 of the PNG's bytes
        pa.field("codes_hash", pa.string()),  # sha256 of the codes as stored: rows, little-endian
    ]
)


class SamplesError(UserError):
    """A folder of samples that is corrupt."""


class Part(NamedTuple):
    """The counts in one task's file of the index."""

    number: int
    rows: int
    ok: int
    crashed: int  # or stalled


def sample_name(sample: int) -> str:
    return f"sample-{sample:05d}"


def part_path(out: P, number: int) -> P:
    return join(out, "index", f"{number:05d}.parquet")


def commit_part(
    out: AnyPath, number: int, lines: pa.Table, environments: Sequence[MadeIn] = ()
) -> None:
    """Write a task's file of the index; one that exists already is kept.

    `environments` are those that the samples were made in, by place in the task. Raises StoreError
    where another run has emptied the staging folder meanwhile.
    """
    statuses = lines["status"].to_pylist()
    counts = {"ok": statuses.count(OK), "crashed": sum(map(statuses.count, GIVEN_UP))}
    table = lines.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)
    description = {**counts, **described_environments(environments)}
    data = parquet_bytes(table.replace_schema_metadata(description_metadata(description)))
    path = part_path(out, number)
    try:
        paths.commit_once(staging_path(out), path, data)
    except FileNotFoundError as error:
        raise StoreError(f"{staging_path(out)} was emptied by another run ({error}).") from error
    paths.flush(out)


def read_parts(out: AnyPath) -> dict[int, Part]:
    """The counts of every task's file, by the task's number.

    Raises SamplesError where a file is corrupt, or none that the folder has written.
    """
    found = {_number_of(path): path for path in paths.matching(join(out, "index"), "*.parquet")}
    return {number: _read_part(number, found[number]) for number in sorted(found)}


def _number_of(path: AnyPath) -> int:
    if not PART_NAME.fullmatch(path.name):
        raise SamplesError(f"{path} is not a file of the index: such names are numbers. Remove it.")
    return int(path.name.partition(".")[0])


def _read_part(number: int, path: AnyPath) -> Part:
    with corrupt_as(partial(_corrupt, path)):
        file = open_parquet(path)
        counts = read_description(path, file.schema_arrow.metadata)
        part = Part(number, file.metadata.num_rows, counts["ok"], counts["crashed"])
        if any(type(count) is not int or not 0 <= count <= part.rows for count in part[2:]):
            raise ValueError("it counts more samples than it has")
        parse_environments(counts, part.rows)
        return part


def read_made_in(out: AnyPath, number: int) -> list[MadeIn]:
    """The environments in which a task's samples were made, by place in the task.

    None where an earlier version made them. Raises SamplesError where the file is corrupt.
    """
    path = part_path(out, number)
    with corrupt_as(partial(_corrupt, path)):
        file = open_parquet(path)
        description = read_description(path, file.schema_arrow.metadata)
        return parse_environments(description, file.metadata.num_rows)


def read_lines(out: AnyPath, number: int) -> list[dict[str, Any]]:
    """The lines of one task, as SAMPLE_SCHEMA has them; SamplesError where they are corrupt."""
    lines: list[dict[str, Any]] = _read_table(part_path(out, number)).to_pylist()
    return lines


def read_index(out: AnyPath) -> pa.Table:
    """All lines, SAMPLE_SCHEMA, in the order of the samples."""
    parts = [part_path(out, number) for number in read_parts(out)]
    return pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *map(_read_table, parts)])


def failed_lines(out: AnyPath, parts: Iterable[Part]) -> list[dict[str, Any]]:
    """The lines of the samples that were given up."""
    tables = [_read_table(part_path(out, part.number)) for part in parts if part.crashed]
    given_up = pa.array(GIVEN_UP)
    found = [table.filter(pc.is_in(table["status"], given_up)).to_pylist() for table in tables]
    return [line for lines in found for line in lines]


def _read_table(path: AnyPath) -> pa.Table:
    with corrupt_as(partial(_corrupt, path)):
        return checked_table(open_parquet(path).read(), SAMPLE_SCHEMA)


def _corrupt(path: AnyPath, error: Exception) -> SamplesError:
    return SamplesError(
        f"{path}: corrupt ({error}). Remove it and run the command again to make its samples again."
    )
