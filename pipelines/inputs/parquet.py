"""Images in Parquet tables: a column of encoded image files, as data set hubs publish them."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ops.images import ImageError

#: Column names that decide, in this order, which of several columns of bytes holds the images.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
#: Columns that name the images; without any, rows are numbered.
NAME_COLUMNS = ("key", "__key__", "file_name", "filename", "path")
#: Column names that hold the images' classes; the first that is there.
LABEL_COLUMNS = ("label", "class", "cls")
GROUPS_KEPT = 8  # row groups cached in memory; a shuffle should not need more at a time


class NoImageColumnError(Exception):
    """A table without a column of image bytes."""


class _Layout(NamedTuple):
    """Which columns and rows of a table hold images."""

    column: str  # dotted, of binary values
    name_column: str | None  # dotted, of strings
    starts: np.ndarray  # (groups + 1,) first row of each row group, then the number of rows


def is_table(path: str) -> bool:
    """Whether a file has the suffix of a Parquet table."""
    return path.lower().endswith(".parquet")


def image_names(path: str) -> Iterator[str]:
    """The name of each row's image, in row order; row numbers if names are missing or repeated."""
    layout = _layout(path, _stamp(path))
    found: list[str | None] = []
    if layout.name_column is not None:
        table = pq.ParquetFile(path).read(columns=[layout.name_column])
        found = _flat(table, layout.name_column).to_pylist()
    if found and all(found) and len(set(found)) == len(found):
        yield from (str(name) for name in found)
    else:
        yield from (f"{row:08d}" for row in range(layout.starts[-1]))


def label_column(path: str) -> str | None:
    """The name of the column that holds the classes, if there is one."""
    names = pq.read_schema(path).names
    return next((name for name in LABEL_COLUMNS if name in names), None)


def image_labels(path: str) -> Iterator[str | None]:
    """The class of each row's image, in row order: a text or a whole number; else None."""
    column = label_column(path)
    layout = _layout(path, _stamp(path))
    for group in range(len(layout.starts) - 1):
        if column is None:
            yield from itertools.repeat(None, int(np.diff(layout.starts)[group]))
            continue
        values = pq.ParquetFile(path).read_row_group(group, columns=[column])[column]
        for value in values.to_pylist():
            yield str(value) if isinstance(value, str | int) and value != "" else None


def read_row(path: str, row: int) -> bytes:
    """The bytes in one row; raises ImageError if there are none."""
    stamp = _stamp(path)
    try:
        layout = _layout(path, stamp)
        group = group_of(path, row)
        with _lock:  # so that threads that read neighbouring rows load their row group once
            column = _group(path, stamp, group)
    except (NoImageColumnError, pa.ArrowException) as error:
        raise ImageError("unreadable", f"{path}: {error}") from None
    if row >= layout.starts[-1]:
        raise ImageError("changed", f"{path} has no row {row} any more")
    value = column[row - int(layout.starts[group])].as_py()
    if not value:
        raise ImageError("empty", f"{path} has no bytes in row {row}")
    return bytes(value)


def group_of(path: str, row: int) -> int:
    """The row group that contains a row: the unit that is read from the file."""
    starts = _layout(path, _stamp(path)).starts
    return int(np.clip(np.searchsorted(starts, row, side="right") - 1, 0, len(starts) - 2))


_lock = threading.Lock()


def _stamp(path: str) -> tuple[int, int]:
    """Size and modification time, which key the caches."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1024)
def _layout(path: str, stamp: tuple[int, int]) -> _Layout:
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    schema = metadata.schema.to_arrow_schema()
    column = _image_column(schema)
    return _Layout(column, _name_column(schema, column), np.cumsum([0, *sizes]))


def _image_column(schema: pa.Schema) -> str:
    found = [name for field in schema if (name := _bytes_in(field))]
    if len(found) > 1:
        likely = {name.partition(".")[0].lower(): name for name in reversed(found)}
        found = [likely[name] for name in IMAGE_COLUMNS if name in likely][:1] or found
    if len(found) != 1:
        several = (
            f"several columns of bytes ({', '.join(found)})" if found else "no column of bytes"
        )
        raise NoImageColumnError(
            f"{several}. Images are looked for in a binary column, or in one with a field `bytes`; "
            f"of several in {', '.join(IMAGE_COLUMNS)}"
        )
    return found[0]


def _bytes_in(field: pa.Field) -> str | None:
    """The dotted name of the bytes in a column, if it has any."""
    kind = field.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return str(field.name)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes"
    return None


def _name_column(schema: pa.Schema, image_column: str) -> str | None:
    for name in NAME_COLUMNS:
        if name in schema.names and pa.types.is_string(schema.field(name).type):
            return name
    holder = schema.field(image_column.partition(".")[0]).type
    if pa.types.is_struct(holder) and holder.get_field_index("path") >= 0:
        return image_column.removesuffix("bytes") + "path"
    return None


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _group(path: str, stamp: tuple[int, int], group: int) -> pa.ChunkedArray:
    column = _layout(path, stamp).column
    return _flat(pq.ParquetFile(path).read_row_group(group, columns=[column]), column)


def _flat(table: pa.Table, column: str) -> pa.ChunkedArray:
    name, _, inner = column.partition(".")
    values = table[name]
    if not inner:
        return values
    arrays = [pa.compute.struct_field(chunk, inner) for chunk in values.chunks]
    return pa.chunked_array(arrays, values.type.field(inner).type)
