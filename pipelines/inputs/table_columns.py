"""Which columns of a Parquet table hold images, their names, classes, captions and other values.

Columns are distinguished by their place in the file, since names may repeat or contain dots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from ops.config import UserError
from ops.text import printable

#: Column names that decide, in this order, which of several columns of bytes holds the images.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
#: Columns that name the images, in any case; without any, rows are numbered.
NAME_COLUMNS = ("key", "__key__", "file_name", "filename", "path")
#: Columns that hold the images' classes, in any case; the first that is there.
LABEL_COLUMNS = ("label", "class", "cls")
#: Kinds of columns whose values can be carried into a store's index.
CARRIED_KINDS = ("text", "integers", "FLOAT", "DOUBLE", "BOOLEAN")
COLUMNS_NAMED = 8  # of a table, in an error


class TableError(UserError):
    """A table that cannot be read: corrupt, encrypted, or beyond a limit."""


class NoTableImagesError(UserError):
    """An intact table without images: without a column of their bytes, or without rows."""


class Column(NamedTuple):
    """One leaf of a table's schema."""

    number: int
    path: str  # dotted; a name may contain dots of its own
    holder: str  # the path of the struct that it is in, with a dot at its end; else ""
    kind: str  # "bytes", "text", "integers", "lists" for what is inside of them, or a type's name
    width: int  # bytes of each value, where all have the same; else 0


def read_column(schema: pq.ParquetSchema, number: int) -> Column:
    """One leaf of a schema; may raise whatever pyarrow does."""
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
    return Column(number, leaf.path, leaf.path.removesuffix(leaf.name), kind, width)


def image_column(columns: Sequence[Column], asked: str | None = None) -> Column:
    """The column of images: the one that is `asked` for, else the only likely one.

    `asked` is a column of bytes or a struct with a field `bytes`. Raises NoTableImagesError where
    there is none, or several.
    """
    if asked is not None:
        columns = [c for c in columns if c.path in (asked, f"{asked}.bytes")] or columns
        if columns[0].path not in (asked, f"{asked}.bytes"):
            raise NoTableImagesError(
                f"it has no column {printable(asked, 60)!r}, but {_listed(columns, kinds=True)}"
            )
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


def _likeliest(columns: Sequence[Column]) -> list[Column]:
    """The columns whose whole name, else whose last part, comes first in IMAGE_COLUMNS."""
    stems = [c.path.lower().removesuffix(".bytes") for c in columns]
    for stems_of in (stems, [stem.rpartition(".")[2] for stem in stems]):
        for name in IMAGE_COLUMNS:
            found = [c for c, stem in zip(columns, stems_of, strict=True) if stem == name]
            if found:
                return found
    return []


def _listed(columns: Sequence[Column], kinds: bool = False) -> str:
    names = [printable(c.path, 60) + f": {c.kind}" * kinds for c in columns[:COLUMNS_NAMED]]
    return ", ".join(names) + (", ..." if len(columns) > COLUMNS_NAMED else "")


def name_columns(
    columns: Sequence[Column], image: Column
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The columns that may name the images, and why others that are called so cannot."""
    others = [column for column in columns if column.number != image.number]
    wanted = list(NAME_COLUMNS)
    if image.path.lower().endswith(".bytes"):  # {bytes, path}, or what flattening makes of it
        wanted.append(image.path[: -len("bytes")].lower() + "path")
    usable: list[Column] = []
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


def label_column_of(
    columns: Sequence[Column], image: Column, asked: str | None = None
) -> Column | None:
    """The column of classes: the one that is `asked` for, else the first of LABEL_COLUMNS."""
    for name in LABEL_COLUMNS if asked is None else (asked,):
        for column in columns:
            kind = column.kind in ("text", "bytes", "integers")
            found = column.path if asked is not None else column.path.lower()
            if found == name and kind and column.number != image.number:
                return column
    return None


def carried_columns(columns: Sequence[Column], without: Sequence[Column]) -> list[Column]:
    """The columns outside structs and lists whose values can be carried into an index.

    Of several with one name there is none.
    """
    counts = Counter(column.path for column in columns)
    taken = {column.number for column in without}
    return [
        column
        for column in columns
        if column.kind in CARRIED_KINDS
        and not column.holder
        and column.number not in taken
        and counts[column.path] == 1
    ]
