"""Images in Parquet tables: a column of encoded image files, as data set hubs publish them.

What a footer claims is checked before anything is read, and whatever pyarrow raises for a user's
table becomes a TableError.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ops.files import NotRegularError
from ops.images import ImageError
from ops.text import printable
from ops.transient_errors import TransientError
from pipelines.inputs.carried import NOTHING, Carried, Carry, carried
from pipelines.inputs.class_names import feature_names
from pipelines.inputs.source_files import FileStatus, open_unbuffered, recent_status
from pipelines.inputs.table_columns import (
    Column,
    NoTableImagesError,
    TableError,
    carried_columns,
    image_column,
    label_column_of,
    name_columns,
    read_column,
)

GROUPS_KEPT = 8  # row groups cached in memory; a shuffle should not need more at a time
GROUP_BYTES = 2 << 30  # the most that the images of one row group may take: pyarrow's own limit
KEPT_BYTES = 2 * GROUP_BYTES  # of all cached row groups together
ROWS_OF_NOTHING = 65536  # rows that a table may have beyond one a byte, for rows without images
SLACK_BYTES = 16 << 20  # memory that reading a column may need beyond what its footer claims

Stamp = FileStatus


class _Layout(NamedTuple):
    """Which columns and rows of a table hold images."""

    image: Column
    names: tuple[Column, ...]  # columns of names, the best first
    unusable: tuple[str, ...]  # why other columns that should name the images do not
    starts: np.ndarray  # (groups + 1,) first row of each row group, then the number of rows


class _Group(NamedTuple):
    """The images of one row group, or why they cannot be read."""

    values: pa.ChunkedArray | None
    error: str


def is_table(path: str) -> bool:
    """Whether a file has the suffix of a Parquet table."""
    return path.lower().endswith(".parquet")


def image_names(path: str, image: str | None = None) -> tuple[Iterator[str], str | None]:
    """The names of all rows, and what to tell the user about them, if anything.

    `image` names the column of images where it does not follow from the table. Rows are numbered if
    names are missing, repeated or not text. Raises TableError for a table that cannot be read,
    NoTableImagesError for one without images.
    """
    with _listing_memory():
        layout = _layout(path, _stamp(path), image)
        problems = list(layout.unusable)
        for column in layout.names:
            names = _names_in(path, layout, column)
            if not isinstance(names, str):
                used = f"rows are named by {printable(column.path)!r}" if problems else None
                return iter(names), used and f"{used}: {'; '.join(problems)}"
            problems.append(names)
    numbered = (f"{row:08d}" for row in range(layout.starts[-1]))
    return numbered, f"rows are numbered: {'; '.join(problems)}" if problems else None


def label_column(path: str, image: str | None = None, asked: str | None = None) -> str | None:
    """The name of the column that holds the classes, if there is one; raises as image_names."""
    label = _label(path, _layout(path, _stamp(path), image), asked)
    return None if label is None else label.path


def image_labels(
    path: str, image: str | None = None, asked: str | None = None
) -> Iterator[str | None]:
    """The class of each row's image: a text that is not empty, an integer, or the name that the
    feature ClassLabel of a data set gives to it; else None."""
    stamp = _stamp(path)
    with _listing_memory():
        layout = _layout(path, stamp, image)
        label = _label(path, layout, asked)
        if label is None:
            yield from itertools.repeat(None, int(layout.starts[-1]))
            return
        for group in range(len(layout.starts) - 1):
            yield from _labels_in(path, stamp, group, label)


def carried_rows(
    path: str, carry: Carry, image: str | None = None, label: str | None = None
) -> Iterator[Carried]:
    """The caption and the other columns of each row, as `carry` selects them.

    `label` is the path of a column that is read as the classes, which is not carried. Raises as
    image_names.
    """
    stamp = _stamp(path)
    with _listing_memory():
        layout = _layout(path, stamp, image)
        used = [c for c in _columns(path, stamp) if c.path == label or c == layout.image]
        columns = [c for c in carried_columns(_columns(path, stamp), used) if carry.takes(c.path)]
        if not columns:
            yield from itertools.repeat(NOTHING, int(layout.starts[-1]))
            return
        names = [column.path for column in columns]
        for group in range(len(layout.starts) - 1):
            values = [_scalars(path, stamp, group, column) for column in columns]
            for row in zip(*values, strict=True):
                yield carried(dict(zip(names, row, strict=True)), carry)


def holds_paths(path: str, names: Sequence[str]) -> bool:
    """Whether a table has no images but a column of text of one of these names; a single name
    decides even where it has images. False where the table cannot be read.
    """
    try:
        columns = _columns(path, _stamp(path))
        if _text_column(columns, names) is None:
            return False
        if len(names) > 1:
            image_column(columns)
    except NoTableImagesError:
        return True
    except (TableError, NotRegularError, OSError, MemoryError):
        return False
    return len(names) == 1


def table_records(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(row, values by column) of each row of a table, of the columns of numbers, text and booleans.

    Raises TableError for a table that cannot be read.
    """
    stamp = _stamp(path)
    with _listing_memory():
        starts = _row_starts(_metadata(path, stamp), stamp.size)
        columns = carried_columns(_columns(path, stamp), ())
        names = [column.path for column in columns]
        for group, first in enumerate(starts[:-1]):
            values = [_scalars(path, stamp, group, column) for column in columns]
            for row, found in enumerate(zip(*values, strict=True), int(first)):
                yield row, dict(zip(names, found, strict=True))


def _text_column(columns: Sequence[Column], names: Sequence[str]) -> Column | None:
    wanted = [name.lower() for name in names]
    texts = (c for c in columns if c.kind == "text" and not c.holder)
    return next((column for column in texts if column.path.lower() in wanted), None)


def read_row(path: str, row: int, image: str | None = None) -> bytes:
    """The bytes in one row; raises ImageError if there are none, OSError if the disk fails."""
    stamp = _stamp(path)
    try:
        layout = _layout(path, stamp, image)
    except (NoTableImagesError, TableError) as error:
        raise ImageError("unreadable", f"{path}: {error}") from None
    if row >= layout.starts[-1]:
        raise ImageError("changed", f"{path} has no row {row} any more")
    group = group_of(path, row, image)
    with _lock:  # so that threads that read neighbouring rows load their row group once
        values, reason = _group(path, stamp, group, layout.image)
    if values is None:
        raise ImageError("unreadable", f"{path}: {reason}")
    value = values[row - int(layout.starts[group])].as_py()
    if not value:
        raise ImageError("empty", f"{path} has no bytes in row {row}")
    return bytes(value)


def group_of(path: str, row: int, image: str | None = None) -> int:
    """The row group that contains a row: the unit that is read from the file."""
    starts = _layout(path, _stamp(path), image).starts
    return int(np.clip(np.searchsorted(starts, row, side="right") - 1, 0, len(starts) - 2))


# --- the schema and the claims of the footer


def _stamp(path: str) -> Stamp:
    """The status of a table, which keys the caches."""
    return recent_status(path)


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _metadata(path: str, stamp: Stamp) -> pq.FileMetaData:
    with _parquet_file(path, stamp) as file, _pyarrow_reads(stamp.size):
        return pq.read_metadata(file)


@functools.lru_cache(maxsize=1024)
def _columns(path: str, stamp: Stamp) -> tuple[Column, ...]:
    schema = _metadata(path, stamp).schema
    with _pyarrow_reads(stamp.size):
        return tuple(read_column(schema, number) for number in range(len(schema)))


@functools.lru_cache(maxsize=1024)
def _layout(path: str, stamp: Stamp, asked: str | None) -> _Layout:
    columns = _columns(path, stamp)
    image = image_column(columns, asked)
    starts = _row_starts(_metadata(path, stamp), stamp.size)
    if starts[-1] == 0:
        raise NoTableImagesError("no rows")
    return _Layout(image, *name_columns(columns, image), starts)


def _label(path: str, layout: _Layout, asked: str | None) -> Column | None:
    return label_column_of(_columns(path, _stamp(path)), layout.image, asked)


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _feature_names(path: str, stamp: Stamp, column: str) -> list[str]:
    return feature_names(_metadata(path, stamp).metadata, column)


def _row_starts(metadata: pq.FileMetaData, size: int) -> np.ndarray:
    """The first row of each row group, then the number of rows; TableError for false claims."""
    with _pyarrow_reads(size):
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        total = metadata.num_rows
    if sum(rows) != total or min(rows, default=0) < 0:
        raise TableError("its footer contradicts itself about the number of rows")
    if total > size + ROWS_OF_NOTHING:
        raise TableError(f"its footer claims {total:,} rows in {size:,} bytes")
    return np.cumsum([0, *rows])


# --- reading columns


_lock = threading.Lock()
_kept: OrderedDict[tuple[str, Stamp, int, int], _Group] = OrderedDict()


def _group(path: str, stamp: Stamp, group: int, image: Column) -> _Group:
    """The images of a row group; a failure is kept, too, so that each row need not meet it anew."""
    key = (path, stamp, group, image.number)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    try:
        _kept[key] = _Group(_values(path, stamp, range(group, group + 1), image), "")
    except TableError as error:
        _kept[key] = _Group(None, str(error))
    while len(_kept) > 1 and (len(_kept) > GROUPS_KEPT or _kept_bytes() > KEPT_BYTES):
        _kept.popitem(last=False)
    return _kept[key]


def _kept_bytes() -> int:
    return sum(group.values.nbytes for group in _kept.values() if group.values is not None)


def _leaf(path: str, stamp: Stamp, groups: range, column: Column) -> pa.ChunkedArray:
    """A column of row groups; text and bytes are dictionaries, where the file allows that."""
    metadata = _metadata(path, stamp)
    # Asking pyarrow for a row group's columns would abort the process where they are corrupt.
    abouts = [metadata.row_group(group) for group in groups]
    rows, claimed = sum(a.num_rows for a in abouts), sum(a.total_byte_size for a in abouts)
    if column.width * rows > GROUP_BYTES:
        raise TableError(f"its footer claims {rows:,} rows of {column.width:,} bytes each")
    with _parquet_file(path, stamp) as file, _pyarrow_reads(max(claimed, column.width * rows)):
        table = pq.ParquetFile(
            file,
            metadata=metadata,
            read_dictionary=[column.path],  # a value repeated a million times takes memory once
            page_checksum_verification=True,
        )
        chunks: list[pa.Array] = []
        for group in groups:  # several at once pyarrow cannot read where they are in structs
            values = table.reader.read_row_group(group, column_indices=[column.number])[0]
            while pa.types.is_struct(values.type):
                values = pa.compute.struct_field(values, [0])
            chunks += values.chunks
        values = pa.chunked_array(chunks or [[]])
    if len(values) != rows:
        raise TableError(f"column {printable(column.path)!r} has {len(values):,} rows of {rows:,}")
    return values


def _values(path: str, stamp: Stamp, groups: range, column: Column) -> pa.ChunkedArray:
    """A column of text or bytes of row groups as bytes, which need not be UTF-8."""
    chunks = _leaf(path, stamp, groups, column).chunks
    with _pyarrow_reads(stamp.size):
        return pa.chunked_array([_binary(chunk) for chunk in chunks] or [[]])


def _binary(chunk: pa.Array) -> pa.Array:
    if not pa.types.is_dictionary(chunk.type):
        chunk.validate(full=True)
        return chunk.cast(pa.large_binary())
    dictionary = chunk.dictionary.cast(pa.large_binary())
    dictionary.validate(full=True)
    return pa.DictionaryArray.from_arrays(chunk.indices, dictionary)  # which checks the indices


def _texts(chunk: pa.Array, errors: str) -> list[str | None]:
    """The values of _values as text; UnicodeDecodeError where they are not, if `errors` so says."""
    distinct = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
    texts = [
        None if value is None else value.decode(errors=errors) for value in distinct.to_pylist()
    ]
    if distinct is chunk:
        return texts
    return [None if place is None else texts[place] for place in chunk.indices.to_pylist()]


def _scalars(path: str, stamp: Stamp, group: int, column: Column) -> list[Any]:
    """The values of a column of numbers or text in one row group; of a ClassLabel the names."""
    groups = range(group, group + 1)
    if column.kind == "text":
        chunks = _values(path, stamp, groups, column).chunks
        return [text for chunk in chunks for text in _texts(chunk, "backslashreplace")]
    values = _leaf(path, stamp, groups, column).to_pylist()
    names = _feature_names(path, stamp, column.path) if column.kind == "integers" else []
    if not names:
        return list(values)
    # Data sets mark images without a class by -1.
    return [names[v] if v is not None and 0 <= v < len(names) else None for v in values]


def _labels_in(path: str, stamp: Stamp, group: int, column: Column) -> Iterator[str | None]:
    if column.kind != "bytes":
        for value in _scalars(path, stamp, group, column):
            yield None if value in (None, "") else str(value)
        return
    for chunk in _values(path, stamp, range(group, group + 1), column).chunks:
        yield from (text or None for text in _texts(chunk, "backslashreplace"))


def _names_in(path: str, layout: _Layout, column: Column) -> list[str] | str:
    """The names in a column, or why they cannot be used."""
    stamp = _stamp(path)
    shown = f"column {printable(column.path)!r}"
    names: list[str] = []
    groups = range(len(layout.starts) - 1)
    for chunk in _values(path, stamp, groups, column).chunks:
        try:
            texts = _texts(chunk, "strict")
        except UnicodeDecodeError:
            return f"{shown} is not all UTF-8"
        named = [text for text in texts if text]
        if len(named) < len(texts):
            return f"{shown} has rows without a value"
        names += named
    if len(set(names)) < len(names):
        return f"{shown} repeats {printable(Counter(names).most_common(1)[0][0], 80)!r}"
    return names


# --- pyarrow


@contextlib.contextmanager
def _parquet_file(path: str, stamp: Stamp) -> Iterator[Any]:
    """The open file; TableError where it is no regular one."""
    try:
        with open_unbuffered(path, stamp) as file:
            yield file
    except NotRegularError:
        raise TableError("not a regular file") from None


@contextlib.contextmanager
def _listing_memory() -> Iterator[None]:
    """A lack of memory becomes a TableError: a listing goes on with the next file."""
    try:
        yield
    except MemoryError:
        raise TableError("reading it takes more memory than there is") from None


@contextlib.contextmanager
def _pyarrow_reads(claimed: int) -> Iterator[None]:
    """What pyarrow raises for a user's table becomes a TableError.

    Errors of the disk stay an OSError, and a lack of memory a MemoryError, unless the table asks
    for far more than the `claimed` bytes that its footer mentions.
    """
    try:
        yield
    except MemoryError as error:
        asked = re.search(r"size (\d+)", str(error))
        if asked is None or int(asked[1]) < 8 * (claimed + SLACK_BYTES):
            raise
        raise TableError(f"corrupt: it asks for {int(asked[1]):,} bytes of memory") from None
    except pa.ArrowCapacityError:
        raise TableError(
            f"a column holds more than {GROUP_BYTES >> 30} GiB in one row group. Write the table "
            "again with fewer rows in each"
        ) from None
    except TransientError:  # of the network
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise TableError(_first_line(error)) from None
    except Exception as error:
        # pyarrow forwards what its C++ libraries throw, and KeyError, UnicodeError, RecursionError
        # and others of its own Python code.
        raise TableError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    """What pyarrow says, which may quote the file."""
    text = str(error).strip().partition("\n")[0]
    return printable(f"not a whole Parquet file ({text or type(error).__name__})", 300)
