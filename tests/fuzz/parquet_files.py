"""Parquet tables of images with odd schemas and values, and with broken bytes."""

from __future__ import annotations

import io
import struct
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests.fuzz.raw_bytes import mutated_bytes

COLUMN_NAMES = ("image", "img", "jpg", "png", "bytes", "a.b", "", "image", "Image", "é", "\x1b[31m",
                "path", "key", "x.bytes", "bytes.bytes", "line\nbreak", "label")  # fmt: skip
NAME_COLUMNS = ("key", "__key__", "file_name", "filename", "path")
KEYS = ("a", "b", "c.png", "folder/d.png", "../../canary/thesis.txt", "/etc/passwd", "", "a", None,
        "\x1b[31m", "line\nbreak", "é", "\u202egnp", "x" * 300, "\0", ".hidden")  # fmt: skip
BYTES_TYPES = ("binary", "large_binary", "binary_view", "dictionary", "fixed", "struct",
               "large struct", "list", "string", "int64", "null", "struct of struct")  # fmt: skip
NAME_TYPES = ("string", "large_string", "string_view", "dictionary", "binary", "int64", "not UTF-8",
              "struct", "list", "null", "timestamp")  # fmt: skip


class ParquetFile(NamedTuple):
    """A Parquet file and how many images it certainly holds."""

    data: bytes
    rows: int


def bytes_column(kind: str, values: list[bytes | None]) -> pa.Array:
    """Image bytes in a column of a type that is named like those of BYTES_TYPES."""
    plain = pa.array(values, pa.binary())
    if kind in ("binary", "large_binary", "binary_view"):
        return plain.cast(getattr(pa, kind)())
    if kind == "dictionary":
        return plain.dictionary_encode()
    if kind == "fixed":
        length = max([1, *(len(value) for value in values if value)])
        padded = [None if value is None else value.ljust(length, b"\0") for value in values]
        return pa.array(padded, pa.binary(length))
    if kind in ("struct", "large struct"):
        inner = plain if kind == "struct" else plain.cast(pa.large_binary())
        names = pa.array([f"{row}.png" for row in range(len(values))])
        return pa.StructArray.from_arrays([inner, names], ["bytes", "path"])
    if kind == "struct of struct":
        inner = pa.StructArray.from_arrays([plain], ["bytes"])
        return pa.StructArray.from_arrays([inner, inner], ["bytes", "path"])
    if kind == "list":
        return pa.array([[value] for value in values], pa.list_(pa.binary()))
    if kind == "string":
        return pa.array(["text"] * len(values))
    return pa.array([None] * len(values)) if kind == "null" else pa.array(range(len(values)))


def name_column(kind: str, names: list[str | None]) -> pa.Array:
    """Names of images in a column of a type that is named like those of NAME_TYPES."""
    plain = pa.array(names, pa.string())
    if kind in ("string", "large_string", "string_view", "binary"):
        return plain.cast(getattr(pa, kind)())
    if kind == "dictionary":
        return plain.dictionary_encode()
    if kind == "not UTF-8":
        offsets = struct.pack(f"<{len(names) + 1}i", *range(0, 2 * len(names) + 2, 2))
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff\xc0" * len(names))]
        return pa.Array.from_buffers(pa.string(), len(names), buffers)
    if kind == "struct":
        return pa.StructArray.from_arrays([plain], ["path"])
    if kind == "list":
        return pa.array([[name] for name in names], pa.list_(pa.string()))
    if kind == "null":
        return pa.array([None] * len(names))
    numbers = pa.array(range(len(names)), pa.int64())
    return numbers.cast(pa.timestamp("s")) if kind == "timestamp" else numbers


@st.composite
def parquet_files(draw: st.DrawFn, image: bytes) -> ParquetFile:
    """A table of copies of `image`, mostly with an oddity or a broken byte."""
    rows = draw(st.integers(0, 5))
    values = [draw(st.sampled_from([image] * 6 + [b"", b"no image", None])) for _ in range(rows)]
    kind = draw(st.sampled_from(["binary"] * 4 + list(BYTES_TYPES)))
    columns = [bytes_column(kind, values)]
    names = [draw(st.sampled_from(["image"] * 6 + list(COLUMN_NAMES)))]
    for _ in range(draw(st.integers(0, 2))):
        keys = [draw(st.sampled_from(KEYS)) for _ in range(rows)]
        columns.append(name_column(draw(st.sampled_from(["string", *NAME_TYPES])), keys))
        names.append(draw(st.sampled_from(NAME_COLUMNS + COLUMN_NAMES)))
    if draw(st.integers(0, 5)) == 0:
        columns.append(bytes_column(draw(st.sampled_from(BYTES_TYPES)), values))
        names.append(draw(st.sampled_from(COLUMN_NAMES)))
    data = _written(draw, pa.Table.from_arrays(columns, names=names))
    certain = rows if kind == "binary" and names == ["image"] else 0
    if draw(st.booleans()):
        return ParquetFile(data, certain)
    return ParquetFile(draw(broken_parquet(data)), 0)


def _written(draw: st.DrawFn, table: pa.Table) -> bytes:
    options: dict[str, Any] = {
        "row_group_size": draw(st.integers(1, 6)),
        "compression": draw(st.sampled_from(["snappy", "none", "zstd", "gzip"])),
        "use_dictionary": draw(st.booleans()),
        "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
        "write_page_checksum": draw(st.booleans()),
        "store_schema": draw(st.booleans()),
    }
    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer, **options)
    except pa.ArrowException:  # a type that Parquet cannot hold
        buffer = io.BytesIO()
        pq.write_table(table.select([]), buffer)
    return buffer.getvalue()


@st.composite
def broken_parquet(draw: st.DrawFn, data: bytes) -> bytes:
    """One or two mutations, mostly of the footer, whose numbers are what readers believe."""
    for _ in range(draw(st.integers(1, 2))):
        footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        where = draw(st.sampled_from(["footer"] * 4 + ["number", "length", "pages"]))
        if where == "length":
            length = draw(st.sampled_from([0, 1, 8, len(data), 2**31 - 1, 2**32 - 1]))
            data = data[:-8] + struct.pack("<I", length) + data[-4:]
        elif where == "number" and 4 <= footer < len(data) - 8:
            # A variable-length number of Thrift, as long as it was or longer.
            at = draw(st.integers(footer, len(data) - 9))
            number = draw(
                st.sampled_from([b"\xff\xff\xff\xff\x0f", b"\xfe" * 9 + b"\x01", b"\x01"])
            )
            footer_bytes = data[footer:at] + number + data[at + 1 : -8]
            data = data[:footer] + footer_bytes + struct.pack("<I", len(footer_bytes)) + data[-4:]
        else:
            start = footer if where == "footer" and 4 <= footer < len(data) else 0
            data = draw(mutated_bytes(data, start)).data
        if len(data) < 12:
            break
    return data
