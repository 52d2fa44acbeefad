"""The index of a folder of painted samples: one line a sample, one Parquet file a task.

    samples/generation.json        what decides the pictures
      index/00000.parquet          the lines of task 0; pyarrow.parquet.read_table("index") has all
      sample-00000.png             --save images
      tars/00000.tar               --save tars: the samples of task 0
      codes.zarr/                  --save codes: row k is sample k
      _staging/                    what is being painted

A task's file appears once everything it tells of is whole, so what is missing is known from the
names of the files here, however many the samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.config import UserError
from ops.files import fsync_path, link_once, make_folders, write_aside
from pipelines.store import (
    FORMAT,
    METADATA_KEY,
    StoreError,
    parquet_bytes,
    sealed,
    staging_path,
    unsealed,
)

OK, CRASHED, NOT_SAMPLED = "ok", "crashed", "not painted"

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("status", pa.string(), nullable=False),  # "ok", "crashed" or "not painted"
        pa.field("error", pa.string()),
        pa.field("file", pa.string()),  # what holds the picture: its PNG, or else its tar
        pa.field("checksum", pa.string()),  # sha256 of the PNG's bytes, wherever they are
        pa.field("codes_hash", pa.string()),  # sha256 of the codes as stored: rows, little-endian
    ]
)


class SamplesError(UserError):
    """A folder of samples that is damaged, or not what a command needs."""


class Part(NamedTuple):
    """What one task's file of the index tells in short."""

    number: int
    rows: int
    ok: int
    crashed: int


def sample_name(sample: int) -> str:
    return f"sample-{sample:05d}"


def part_path(out: Path, number: int) -> Path:
    return out / "index" / f"{number:05d}.parquet"


def commit_part(out: Path, number: int, lines: pa.Table) -> None:
    """Give a task its file of the index; one that is there already stands.

    Raises StoreError where the staging folder was emptied meanwhile: others have done it all.
    """
    statuses = lines["status"].to_pylist()
    counts = {"ok": statuses.count(OK), "crashed": statuses.count(CRASHED)}
    table = lines.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)
    description = sealed({"format": FORMAT, **counts})
    data = parquet_bytes(table.replace_schema_metadata({METADATA_KEY: description}))
    path = part_path(out, number)
    try:
        aside = write_aside(staging_path(out) / path.name, data)
        make_folders(path.parent)
        link_once(aside, path)
    except FileNotFoundError as error:
        raise StoreError(f"{staging_path(out)} was emptied by another run ({error}).") from error
    fsync_path(out)


def read_parts(out: Path) -> dict[int, Part]:
    """What every task's file tells in short, by the task's number."""
    paths = sorted((out / "index").glob("*.parquet"), key=lambda path: int(path.stem))
    return {int(path.stem): _read_part(path) for path in paths}


def _read_part(path: Path) -> Part:
    try:
        footer = pq.read_metadata(path)
        footer_values = unsealed(path, footer.metadata)
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, error) from error
    return Part(int(path.stem), footer.num_rows, footer_values["ok"], footer_values["crashed"])


def read_lines(out: Path, number: int) -> list[dict[str, Any]]:
    """The lines of one task, as SAMPLE_SCHEMA has them; SamplesError where they are damaged."""
    return _read_table(part_path(out, number)).to_pylist()


def read_index(out: Path) -> pa.Table:
    """Every line there is, SAMPLE_SCHEMA, in the order of the samples."""
    paths = [part_path(out, number) for number in read_parts(out)]
    return pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *map(_read_table, paths)])


def failed_lines(out: Path, parts: Iterable[Part]) -> list[dict[str, Any]]:
    """The lines of the samples that were given up."""
    tables = [_read_table(part_path(out, part.number)) for part in parts if part.crashed]
    found = [table.filter(pc.equal(table["status"], CRASHED)).to_pylist() for table in tables]
    return [line for lines in found for line in lines]


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        return table.replace_schema_metadata(None).cast(SAMPLE_SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> SamplesError:
    return SamplesError(
        f"{path}: damaged ({error}). Remove it and run the command again to paint its samples anew."
    )
