"""Images in Parquet tables: a column of encoded image files, as data set hubs publish them.

Columns are distinguished by their place in the file, since names may repeat or contain dots. What a
footer claims is checked before anything is read, and whatever pyarrow raises for a user's table
becomes a TableError.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ops.config import UserError
from ops.files import NotRegularError, open_regular
from ops.images import ImageError
from ops.text import printable

#: Column names that decide, in this order, which of several columns of bytes holds the images.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
#: Columns that name the images, in any case; without any, rows are numbered.
NAME_COLUMNS = ("key", "__key__", "file_name", "filename", "path")
#: Columns that hold the images' classes, in any case; the first that is there.
LABEL_COLUMNS = ("label", "class", "cls")
GROUPS_KEPT = 8  # row groups cached in memory; a shuffle should not need more at a time
GROUP_BYTES = 2 << 30  # the most that the images of one row group may take: pyarrow's own limit
KEPT_BYTES = 2 * GROUP_BYTES  # of all cached row groups together
ROWS_OF_NOTHING = 65536  # rows that a table may have beyond one a byte, for rows without images
SLACK_BYTES = 16 << 20  # memory that reading a column may need beyond what its footer claims
COLUMNS_NAMED = 8  # of a table, in an error

Stamp = tuple[int, int]


class TableError(UserError):
    """A table that cannot be read: corrupt, encrypted, or beyond a limit."""


class NoTableImagesError(UserError):
    """An intact table without images: without a column of their bytes, or without rows."""


class _Column(NamedTuple):
    """One leaf of a table's schema."""

    number: int
    path: str  # dotted; a name may contain dots of its own
    holder: str  # the path of the struct that it is in, with a dot at its end; else ""
    kind: str  # "bytes", "text", "integers", "lists" for what is inside of them, or a type's name
    width: int  # bytes of each value, where all have the same; else 0


class _Layout(NamedTuple):
    """Which columns and rows of a table hold images."""

    image: _Column
    names: tuple[_Column, ...]  # columns of names, the best first
    unusable: tuple[str, ...]  # why other columns that should name the images do not
    label: _Column | None  # the column of classes
    starts: np.ndarray  # (groups + 1,) first row of each row group, then the number of rows


class _Group(NamedTuple):
    """The images of one row group, or why they cannot be read."""

    values: pa.ChunkedArray | None
    error: str


def is_table(path: str) -> bool:
    """Whether a file has the suffix of a Parquet table."""
    return path.lower().endswith(".parquet")


def image_names(path: str) -> tuple[Iterator[str], str | None]:
    """The names of all rows, and what to tell the user about them, if anything.

    Rows are numbered if names are missing, repeated or not text. Raises TableError for a table that
    cannot be read, NoTableImagesError for one without images.
    """
    with _listing_memory():
        layout = _layout(path, _stamp(path))
        problems = list(layout.unusable)
        for column in layout.names:
            names = _names_in(path, column)
            if not isinstance(names, str):
                used = f"rows are named by {printable(column.path)!r}" if problems else None
                return iter(names), used and f"{used}: {'; '.join(problems)}"
            problems.append(names)
    numbered = (f"{row:08d}" for row in range(layout.starts[-1]))
    return numbered, f"rows are numbered: {'; '.join(problems)}" if problems else None


def label_column(path: str) -> str | None:
    """The name of the column that holds the classes, if there is one; raises as image_names."""
    label = _layout(path, _stamp(path)).label
    return None if label is None else label.path


def image_labels(path: str) -> Iterator[str | None]:
    """The class of each row's image: a text that is not empty or an integer; else None."""
    stamp = _stamp(path)
    with _listing_memory():
        layout = _layout(path, stamp)
        groups = range(len(layout.starts) - 1)
        if layout.label is None:
            yield from itertools.repeat(None, int(layout.starts[-1]))
        elif layout.label.kind == "integers":
            for value in _leaf(path, stamp, groups, layout.label).to_pylist():
                yield None if value is None else str(value)
        else:
            for chunk in _values(path, stamp, groups, layout.label).chunks:
                yield from (text or None for text in _texts(chunk, "backslashreplace"))


def read_row(path: str, row: int) -> bytes:
    """The bytes in one row; raises ImageError if there are none, OSError if the disk fails."""
    stamp = _stamp(path)
    try:
        layout = _layout(path, stamp)
    except (NoTableImagesError, TableError) as error:
        raise ImageError("unreadable", f"{path}: {error}") from None
    if row >= layout.starts[-1]:
        raise ImageError("changed", f"{path} has no row {row} any more")
    group = group_of(path, row)
    with _lock:  # so that threads that read neighbouring rows load their row group once
        values, reason = _group(path, stamp, group)
    if values is None:
        raise ImageError("unreadable", f"{path}: {reason}")
    value = values[row - int(layout.starts[group])].as_py()
    if not value:
        raise ImageError("empty", f"{path} has no bytes in row {row}")
    return bytes(value)


def group_of(path: str, row: int) -> int:
    """The row group that contains a row: the unit that is read from the file."""
    starts = _layout(path, _stamp(path)).starts
    return int(np.clip(np.searchsorted(starts, row, side="right") - 1, 0, len(starts) - 2))


# --- the schema and the claims of the footer


def _stamp(path: str) -> Stamp:
    """Size and modification time, which key the caches."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _metadata(path: str, stamp: Stamp) -> pq.FileMetaData:
    with _parquet_file(path) as file, _pyarrow_reads(stamp[0]):
        return pq.read_metadata(file)


@functools.lru_cache(maxsize=1024)
def _layout(path: str, stamp: Stamp) -> _Layout:
    metadata = _metadata(path, stamp)
    with _pyarrow_reads(stamp[0]):
        columns = [_column(metadata.schema, number) for number in range(len(metadata.schema))]
    image = _image_column(columns)
    starts = _row_starts(metadata, stamp[0])
    if starts[-1] == 0:
        raise NoTableImagesError("no rows")
    return _Layout(image, *_name_columns(columns, image), _label_column(columns, image), starts)


def _column(schema: pq.ParquetSchema, number: int) -> _Column:
    leaf = schema.column(number)
    kind, width = leaf.physical_type, 0
    if kind == "FIXED_LEN_BYTE_ARRAY":
        kind, width = "BYTE_ARRAY", leaf.length
    logical = leaf.logical_type.type
    plain = logical in ("NONE", "UNDEFINED", "UNKNOWN")
    if leaf.max_repetition_level:
        kind = "lists"
    elif kind == "BYTE_ARRAY" and plain:
        kind = "bytes"
    elif kind == "BYTE_ARRAY" and logical in ("STRING", "ENUM"):
        kind = "text"
    elif kind in ("INT32", "INT64") and (plain or logical == "INT"):
        kind = "integers"
    elif not plain:
        kind = logical
    return _Column(number, leaf.path, leaf.path.removesuffix(leaf.name), kind, width)


def _image_column(columns: Sequence[_Column]) -> _Column:
    binary = [column for column in columns if column.kind == "bytes"]
    named = [column for column in binary if column.path.lower() not in NAME_COLUMNS]
    files = [c for c in named if not c.holder or c.path == f"{c.holder}bytes"]
    found = files or named or binary
    if len(found) > 1:
        found = _likeliest(found) or found
    if len(found) != 1:
        if found:
            problem = f"several columns of bytes ({_listed(found)})"
        else:
            problem = f"no column of bytes, but {_listed(columns, kinds=True) or 'no column'}"
        raise NoTableImagesError(
            f"{problem}. Images are looked for in a binary column, or in one with a field `bytes`, "
            f"but not in lists; of several in {', '.join(IMAGE_COLUMNS)}"
        )
    same = [column for column in columns if column.path == found[0].path]
    if len(same) > 1:  # pyarrow's options go by name
        raise NoTableImagesError(f"{len(same)} columns have the name {printable(same[0].path)!r}")
    return found[0]


def _likeliest(columns: Sequence[_Column]) -> list[_Column]:
    """The columns whose whole name, else whose last part, comes first in IMAGE_COLUMNS."""
    stems = [c.path.lower().removesuffix(".bytes") for c in columns]
    for stems_of in (stems, [stem.rpartition(".")[2] for stem in stems]):
        for name in IMAGE_COLUMNS:
            found = [c for c, stem in zip(columns, stems_of, strict=True) if stem == name]
            if found:
                return found
    return []


def _listed(columns: Sequence[_Column], kinds: bool = False) -> str:
    names = [printable(c.path, 60) + f": {c.kind}" * kinds for c in columns[:COLUMNS_NAMED]]
    return ", ".join(names) + (", ..." if len(columns) > COLUMNS_NAMED else "")


def _name_columns(
    columns: Sequence[_Column], image: _Column
) -> tuple[tuple[_Column, ...], tuple[str, ...]]:
    """The columns that may name the images, and why others that are called so cannot."""
    others = [column for column in columns if column.number != image.number]
    wanted = list(NAME_COLUMNS)
    if image.path.lower().endswith(".bytes"):  # {bytes, path}, or what flattening makes of it
        wanted.append(image.path[: -len("bytes")].lower() + "path")
    usable: list[_Column] = []
    problems: list[str] = []
    for name in wanted:
        called = [column for column in others if column.path.lower() == name]
        text = [column for column in called if column.kind in ("text", "bytes")]
        below = [column for column in others if column.path.lower().startswith(f"{name}.")]
        if len(called) > 1:
            problems.append(f"{len(called)} columns have the name {printable(called[0].path)!r}")
        elif text:
            usable += text
        elif called or below:
            kind = called[0].kind if called else "fields"
            path = printable((called or below)[0].path[: len(name)])
            problems.append(f"column {path!r} holds {kind}, not text")
    return tuple(usable), tuple(problems)


def _label_column(columns: Sequence[_Column], image: _Column) -> _Column | None:
    for name in LABEL_COLUMNS:
        for column in columns:
            kind = column.kind in ("text", "bytes", "integers")
            if column.path.lower() == name and kind and column.number != image.number:
                return column
    return None


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
_kept: OrderedDict[tuple[str, Stamp, int], _Group] = OrderedDict()


def _group(path: str, stamp: Stamp, group: int) -> _Group:
    """The images of a row group; a failure is kept, too, so that each row need not meet it anew."""
    key = (path, stamp, group)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    try:
        _kept[key] = _Group(
            _values(path, stamp, range(group, group + 1), _layout(path, stamp).image), ""
        )
    except TableError as error:
        _kept[key] = _Group(None, str(error))
    while len(_kept) > 1 and (len(_kept) > GROUPS_KEPT or _kept_bytes() > KEPT_BYTES):
        _kept.popitem(last=False)
    return _kept[key]


def _kept_bytes() -> int:
    return sum(group.values.nbytes for group in _kept.values() if group.values is not None)


def _leaf(path: str, stamp: Stamp, groups: range, column: _Column) -> pa.ChunkedArray:
    """A column of row groups; text and bytes are dictionaries, where the file allows that."""
    metadata = _metadata(path, stamp)
    # Asking pyarrow for a row group's columns would abort the process where they are corrupt.
    abouts = [metadata.row_group(group) for group in groups]
    rows, claimed = sum(a.num_rows for a in abouts), sum(a.total_byte_size for a in abouts)
    if column.width * rows > GROUP_BYTES:
        raise TableError(f"its footer claims {rows:,} rows of {column.width:,} bytes each")
    with _parquet_file(path) as file, _pyarrow_reads(max(claimed, column.width * rows)):
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


def _values(path: str, stamp: Stamp, groups: range, column: _Column) -> pa.ChunkedArray:
    """A column of text or bytes of row groups as bytes, which need not be UTF-8."""
    chunks = _leaf(path, stamp, groups, column).chunks
    with _pyarrow_reads(stamp[0]):
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


def _names_in(path: str, column: _Column) -> list[str] | str:
    """The names in a column, or why they cannot be used."""
    stamp = _stamp(path)
    shown = f"column {printable(column.path)!r}"
    names: list[str] = []
    groups = range(len(_layout(path, stamp).starts) - 1)
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
def _parquet_file(path: str) -> Iterator[Any]:
    """The open file; TableError where it is no regular one."""
    try:
        with open_regular(path) as file:
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
