"""Parquet tables as others write them: types and shapes of columns, false claims, corruption."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from ops.images import ImageError
from pipelines.inputs import parquet
from pipelines.inputs.listing import list_input
from pipelines.inputs.parquet import (
    NoTableImagesError,
    TableError,
    image_labels,
    image_names,
    label_column,
    read_row,
)
from tests.conftest import examples

IMAGES = [b"one", b"two", b"six"]
NAMES = ["x/1.png", "x/2.png", "y/é.png"]
BYTES = pa.array(IMAGES, pa.binary())
TEXT = pa.array(NAMES)
NUMBERED = ["00000000", "00000001", "00000002"]
PNG = b"\x89PNG\r\n\x1a\n"


def write(path: Path, columns: Any, **options: Any) -> Path:
    """Write a table of {name: values}, or of a list of (name, values) with repeated names."""
    pairs = columns.items() if isinstance(columns, dict) else columns
    names, values = zip(*pairs, strict=True) if pairs else ((), ())
    table = pa.Table.from_arrays([pa.array(v) if isinstance(v, list) else v for v in values], names)
    pq.write_table(table, path, **options)
    return path


def read_all(path: Path) -> tuple[list[str], list[bytes], str | None]:
    """The names and the bytes of all rows, and the note."""
    names, note = image_names(str(path))
    found = list(names)
    return found, [read_row(str(path), row) for row in range(len(found))], note


def nested(name: str, values: Any, *more: Any) -> pa.Array:
    """Values as a field of a struct, with further fields."""
    names, arrays = zip((name, values), *more, strict=True)
    return pa.StructArray.from_arrays(arrays, names)


# --- spellings


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), "category"],
    ids=str,
)
def test_bytes_of_every_type_are_read(tmp_path: Path, kind: Any, dictionary: bool) -> None:
    column = BYTES.dictionary_encode() if kind == "category" else pa.array(IMAGES, kind)
    path = write(tmp_path / "a.parquet", {"image": column}, use_dictionary=dictionary)
    assert read_all(path) == (NUMBERED, IMAGES, None)


@pytest.mark.parametrize("name", ["key", "File_Name", "path"])
@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.binary(), pa.large_binary(), pa.binary_view()),
        "category",
    ],
    ids=str,
)
def test_names_of_every_type_are_used(tmp_path: Path, kind: Any, name: str) -> None:
    column = TEXT.dictionary_encode() if kind == "category" else TEXT.cast(kind)
    table = {"image": BYTES, name: column}
    plain = write(tmp_path / "a.parquet", table, row_group_size=2, store_schema=False)
    assert read_all(plain) == (NAMES, IMAGES, None)
    inside = nested("bytes", BYTES, ("path", column))
    rows = 3 if kind in (pa.string_view(), pa.binary_view()) else 2  # pyarrow cannot split views
    hub = write(tmp_path / "b.parquet", {"photo": inside}, row_group_size=rows)
    assert read_all(hub) == (NAMES, IMAGES, None)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"a.b": BYTES}, False),
        ({"photo.jpg": BYTES, "photo.cls": BYTES}, False),
        ({"photo.bytes": BYTES, "photo.path": TEXT}, True),
        ({"sample": nested("image", nested("bytes", BYTES, ("path", TEXT)))}, True),
        ({"sample": nested("data", BYTES)}, False),
        ({"photo": BYTES, "key": TEXT.cast(pa.binary())}, True),
        ({"image": [5, 6, 7], "data": BYTES, "filename": TEXT}, True),
        ({"mask": nested("bytes", BYTES), "image": nested("bytes", BYTES)}, False),
        ([("image", BYTES), ("note", TEXT), ("note", TEXT), ("key", TEXT)], True),
        ({"": BYTES}, False),
        ({"a": pa.array(["1", "2", "3"], pa.json_()), "b": BYTES}, False),
        ({**{f"c{number}": TEXT for number in range(300)}, "b": BYTES}, False),
    ],
)
def test_columns_of_every_shape_are_found(tmp_path: Path, columns: Any, named: bool) -> None:
    path = write(tmp_path / "a.parquet", columns)
    assert read_all(path) == (NAMES if named else NUMBERED, IMAGES, None)


def with_bytes(data: bytes) -> pa.Array:
    """Three texts whose bytes are `data`, four each, whatever they are."""
    offsets = pa.py_buffer(struct.pack("<4i", 0, 4, 8, 12))
    return pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(data)])


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ([("key", TEXT), ("key", TEXT)], "2 columns have the name 'key'"),
        ({"key": ["a", None, "b"]}, "column 'key' has rows without a value"),
        ({"key": ["a", "", "b"]}, "column 'key' has rows without a value"),
        ({"key": ["a", "b\x1b", "b\x1b"]}, r"column 'key' repeats 'b\\x1b'"),
        ({"key": [1, 2, 3]}, "column 'key' holds integers, not text"),
        ({"path": [["a"]] * 3}, "column 'path' holds fields, not text"),
        ({"path": nested("a", TEXT)}, "column 'path' holds fields, not text"),
        ({"key": with_bytes(b"\xff\xfe\xc0\x80 a b c d")}, "column 'key' is not all UTF-8"),
    ],
)
def test_unusable_names_are_reported_and_rows_numbered(
    tmp_path: Path, columns: Any, why: str
) -> None:
    pairs = [*(columns.items() if isinstance(columns, dict) else columns)]
    path = write(tmp_path / "a.parquet", [("image", BYTES), *pairs])
    assert read_all(path) == (NUMBERED, IMAGES, f"rows are numbered: {why}")
    other = write(tmp_path / "b.parquet", [("image", BYTES), *pairs, ("filename", TEXT)])
    assert read_all(other) == (NAMES, IMAGES, f"rows are named by 'filename': {why}")


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({}, "no column"),
        ({"image": pa.array([], pa.binary())}, "no rows"),
        ({"image": [5, 6]}, "no column of bytes, but image: integers"),
        ({"image": [{"bytes": 5}, {"bytes": 2**40}]}, "image.bytes: integers"),
        ({"image": pa.array([[1, 2]], pa.list_(pa.uint8()))}, "image.list.element: lists"),
        ({"image": [[{"bytes": b"1"}]]}, "image.list.element.bytes: lists"),
        ({"image": pa.array([b"x" * 16], pa.uuid())}, "image: UUID"),
        ({"image": ["text"]}, "image: text"),
        ([("image", BYTES), ("image", BYTES)], "several columns of bytes (image, image)"),
        ([("image", BYTES), ("image", TEXT)], "2 columns have the name 'image'"),
        ({"\x1b[1m": BYTES, "b": BYTES}, r"several columns of bytes (\x1b[1m, b)"),
        ({"image": nested("bytes", BYTES), "image.bytes": BYTES}, "several columns"),
    ],
)
def test_table_without_images_is_skipped_with_the_reason(
    tmp_path: Path, columns: Any, why: str
) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(NoTableImagesError) as caught:
        image_names(str(path))
    assert why in str(caught.value)


def test_classes_of_every_type_are_read(tmp_path: Path) -> None:
    labels = ["cat", "", None]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary()):
        column = pa.array(labels).cast(kind)
        for values in (column, column.dictionary_encode()):
            if pa.types.is_string_view(kind) and values is not column:
                continue  # pyarrow cannot write it
            path = write(tmp_path / "a.parquet", {"image": BYTES, "Label": values})
            assert label_column(str(path)) == "Label"
            assert list(image_labels(str(path))) == ["cat", None, None]
    path = write(tmp_path / "a.parquet", {"image": BYTES, "cls": [7, None, 0]}, row_group_size=2)
    assert list(image_labels(str(path))) == ["7", None, "0"]
    path = write(tmp_path / "b.parquet", {"image": BYTES, "label": [[1], [2], [3]]})
    assert label_column(str(path)) is None
    assert list(image_labels(str(path))) == [None] * 3


def test_listing_says_which_columns_are_not_used(tmp_path: Path) -> None:
    table = {"image": BYTES, "key": ["a", "a", "b"], "label": TEXT.cast(pa.large_string())}
    path = write(tmp_path / "a.parquet", table)
    numbered = ("a.parquet", "rows are numbered: column 'key' repeats 'a'")
    listing = list_input(path)
    assert numbered in listing.unused
    assert any("'label'" in what for _, what in listing.unused)
    listing = list_input(path, "field")
    assert listing.unused == [numbered]
    assert listing.table["label_name"].to_pylist() == NAMES


# --- false claims and corruption


def varint(number: int) -> bytes:
    """A whole number as Thrift's compact protocol writes it."""
    number = (number << 1) ^ (number >> 63)
    low = bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
    return low if number <= 0x7F else low + _rest(number >> 7)


def _rest(number: int) -> bytes:
    low = bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
    return low if number <= 0x7F else low + _rest(number >> 7)


def forge_footer(data: bytes, old: bytes, new: bytes) -> bytes:
    """The file with `new` in place of `old` in its footer."""
    length = struct.unpack("<I", data[-8:-4])[0]
    body, footer = data[: -8 - length], data[-8 - length : -8]
    assert old in footer
    footer = footer.replace(old, new)
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


@pytest.mark.parametrize(
    ("rows", "why"),
    [(2**40, "claims 1,099,511,627,776 rows in"), (-5, "contradicts itself"), (2**62, "itself")],
)
def test_number_of_rows_is_checked_before_it_is_believed(
    tmp_path: Path, rows: int, why: str
) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"] * 12345}, row_group_size=2**20)
    if rows == 2**62:  # two row groups whose sum is beyond 64 bits
        path = write(path, {"image": [b"x"] * 24690}, row_group_size=12345)
    path.write_bytes(forge_footer(path.read_bytes(), varint(12345), varint(rows)))
    with pytest.raises(TableError, match=why):
        image_names(str(path))


def test_rows_that_a_footer_adds_are_unreadable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"] * 12345})
    path.write_bytes(forge_footer(path.read_bytes(), varint(12345), varint(12347)))
    names, _ = image_names(str(path))
    assert len(list(names)) == 12347
    with pytest.raises(ImageError, match=r"12,345 rows of 12,347|not a whole Parquet file"):
        read_row(str(path), 12346)


def test_corrupt_column_does_not_abort_the_process(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": BYTES})
    optional, required = b"\x25\x02\x18\x05image", b"\x25\x00\x18\x05image"
    path.write_bytes(forge_footer(path.read_bytes(), optional, required))
    image_names(str(path))  # pyarrow's metadata of the column would abort it
    with pytest.raises(ImageError, match="not a whole Parquet file"):
        read_row(str(path), 0)


@contextlib.contextmanager
def address_space(beyond: int) -> Iterator[None]:
    """Let this process allocate `beyond` bytes, as `ulimit -v` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("column", ["image", "key"])
def test_dictionary_that_asks_for_much_memory_is_corrupt(tmp_path: Path, column: str) -> None:
    table = {"image": BYTES, "key": TEXT}
    table[column] = table.pop(column)  # the last one: what it grows by moves no other
    path = write(tmp_path / "a.parquet", table, compression="none")
    data = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(1)
    start = chunk.dictionary_page_offset
    page = data[start : start + 12]  # the header ends with the number of values and the encoding
    count = page.index(b"\x4c\x15") + 2
    forged = page[:count] + varint(2**31 - 1) + page[count + 1 :]
    path.write_bytes(data[:start] + forged + data[start + 12 :])
    with address_space(1 << 30):
        if column == "image":
            names, _ = image_names(str(path))
            assert list(names) == NAMES
            with pytest.raises(ImageError, match="asks for 34,359,738,368 bytes"):
                read_row(str(path), 0)
        else:
            with pytest.raises(TableError, match="asks for 34,359,738,368 bytes"):
                image_names(str(path))


def test_one_value_in_many_rows_takes_memory_once(tmp_path: Path) -> None:
    value = pa.array([bytes(900_000)])
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(60_000, np.int32)), value)
    table = {"image": column, "key": column.cast(pa.dictionary(pa.int32(), pa.string()))}
    path = write(tmp_path / "a.parquet", table, compression="zstd", row_group_size=60_000)
    with address_space(1 << 30):  # of 108 GB
        names, note = image_names(str(path))
        assert note is not None
        assert "'key' repeats" in note
        assert next(names) == "00000000"
        assert len(read_row(str(path), 59_999)) == 900_000


def test_row_group_beyond_the_limit_is_named() -> None:
    with pytest.raises(TableError, match="fewer rows"), parquet._pyarrow_reads(0):
        raise pa.ArrowCapacityError("array cannot contain more than 2147483646 bytes")


def test_lack_of_memory_is_not_the_tables_when_it_is_read() -> None:
    with pytest.raises(MemoryError), parquet._pyarrow_reads(0):
        raise pa.ArrowMemoryError("malloc of size 4096 failed")
    with pytest.raises(TableError, match="more memory than there is"), parquet._listing_memory():
        raise MemoryError


def test_errors_of_the_disk_are_not_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", {"image": BYTES})
    image_names(str(path))

    class Failing(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(parquet, "open_unbuffered", lambda *_: Failing(path.read_bytes()))
    with pytest.raises(OSError, match="Input/output error"):
        read_row(str(path), 0)
    monkeypatch.undo()
    assert read_row(str(path), 0) == b"one"  # the failure was not kept


def test_row_group_that_cannot_be_read_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", {"image": BYTES}, compression="none", row_group_size=2)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).dictionary_page_offset
    data[start : start + 4] = b"\xff" * 4
    path.write_bytes(data)
    opened: list[str] = []
    original = parquet.open_unbuffered
    monkeypatch.setattr(
        parquet, "open_unbuffered", lambda p, *_, **__: opened.append(p) or original(p)
    )
    for _ in range(3):
        with pytest.raises(ImageError, match="not a whole Parquet file"):
            read_row(str(path), 1)
    assert read_row(str(path), 2) == b"six"
    assert len(opened) == 3  # for the footer and two row groups


def test_odd_tables_stop_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    whole = write(tmp_path / "a.parquet", {"image": BYTES}).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "encrypted.parquet").write_bytes(whole[:-4] + b"PARE")
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "far.parquet").write_bytes(whole[:-8] + b"\xff\xff\xff\x7fPAR1")
    write(tmp_path / "int.parquet", {"image": [1]})
    os.mkfifo(tmp_path / "pipe.parquet")
    listing = list_input(tmp_path)
    keys = [entry.key for entry in listing.entries]
    assert keys == [*(f"a.parquet/{name}" for name in NUMBERED), "x.png"]
    assert listing.unread == [f"{name}.parquet" for name in ("cut", "empty", "encrypted", "far")]
    assert {key for key, _ in listing.skipped} == {*listing.unread, "int.parquet", "pipe.parquet"}
    with pytest.raises(TableError, match="not a regular file"):
        image_names(str(tmp_path / "pipe.parquet"))


FUZZED = [
    ({"image": nested("bytes", BYTES, ("path", TEXT)), "label": TEXT}, {}),
    ({"image": BYTES, "key": TEXT}, {"compression": "zstd", "row_group_size": 2}),
    ({"image": BYTES, "key": TEXT}, {"use_dictionary": False, "data_page_version": "2.0"}),
    ({"image": pa.array(IMAGES, pa.binary(3)), "cls": [1, 2, 3]}, {"compression": "none"}),
]


@hypothesis.given(
    which=st.integers(0, len(FUZZED) - 1),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 3), st.binary(max_size=8)),
        min_size=1,
        max_size=3,
    ),
)
@hypothesis.settings(max_examples=examples(100))
def test_changed_bytes_give_exactly_rows_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, which: int, edits: list[tuple[Any, ...]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.parquet"
    columns, options = FUZZED[which]
    data = bytearray(write(path, columns, **options).read_bytes())
    for where, in_footer, removed, added in edits:
        footer = struct.unpack("<I", data[-8:-4])[0] if in_footer and len(data) > 8 else 0
        first = max(0, len(data) - 8 - footer) if footer else 0
        place = first + int(where * (len(data) - first))
        data[place : place + removed] = added
    path.write_bytes(data)
    for cache in (parquet._layout, parquet._metadata):  # files of one size follow too quickly
        cache.cache_clear()
    parquet._kept.clear()
    try:
        names, _ = image_names(str(path))
        rows = list(names)
        assert len(list(image_labels(str(path)))) == len(rows) > 0
    except (NoTableImagesError, TableError) as error:
        reason = str(error)
    else:
        reason = ""
    assert reason.isprintable()
    if reason:
        return
    for row in {0, len(rows) // 2, len(rows) - 1}:
        with contextlib.suppress(ImageError):
            assert read_row(str(path), row)
