"""Lists of paths: CSV, JSONL and Parquet, with their columns, classes and bad lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inputs.carried import Carry
from pipelines.inputs.fields import Fields
from pipelines.inputs.listing import Listing, list_input, list_sources
from pipelines.inputs.patterns import InputError
from pipelines.inputs.reading import read_bytes
from tests.conftest import examples

PNG = b"\x89PNG\r\n\x1a\n"
ALL = Fields(carry=Carry(None))
ROWS = [
    {"path": "a/1.png", "label": "cat", "caption": " A cat. ", "score": 5.5, "id": 7},
    {"path": "2.png", "label": "dog", "caption": None, "score": None, "id": 8},
    {"path": "gone.png", "label": None, "caption": "lost", "score": 1.0, "id": None},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "2.png"):
        (tmp_path / name).write_bytes(PNG + name.encode())
    return tmp_path


def write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0])]
        lines += [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_list_gives_images_with_its_other_columns(folder: Path, suffix: str) -> None:
    path = write_list(folder / f"list.{suffix}", ROWS)
    listing = list_input(path, "field", ALL)
    found = {entry.key: entry for entry in listing.entries}
    assert sorted(found) == ["2.png", "a/1.png", "gone.png"]
    one = found["a/1.png"]
    assert (one.label_name, one.caption) == ("cat", "A cat.")
    assert json.loads(one.carried or "") == {"score": 5.5, "id": 7}
    assert json.loads(found["2.png"].carried or "") == {"id": 8}
    assert read_bytes(one.uri, one.offset, one.size, one.etag) == PNG + b"a/1.png"
    assert found["gone.png"].etag == "missing"  # a row of its own names it
    assert not listing.skipped
    assert not listing.unused
    nothing = list_input(path).entries
    assert {(e.label_name, e.caption, e.carried) for e in nothing} == {(None, None, None)}


def test_what_a_list_says_of_an_image_is_part_of_its_content(folder: Path) -> None:
    def etags(rows: list[dict[str, Any]]) -> list[str]:
        listing = list_input(write_list(folder / "list.jsonl", rows), "field", ALL)
        return [entry.etag for entry in listing.entries]

    before = etags(ROWS[:2])
    assert etags(ROWS[1::-1]) == before
    assert etags([ROWS[0], {**ROWS[1], "label": "wolf"}]) == [
        etags([{**ROWS[1], "label": "wolf"}])[0],
        before[1],
    ]


def test_lines_that_name_no_image_are_skipped_with_the_reason(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "x.tar").write_bytes(b"")
    rows = [
        {"file": "2.png"}, {"file": ""}, {"name": "2.png"}, {"file": 7}, {"file": "a"},
        {"file": "pipe.png"}, {"file": "x.tar"}, {"file": "ftp://host/1.png"},
        {"file": "a\0b"}, {"file": "../" * 500 + "n" * 300},
    ]  # fmt: skip
    path = write_list(folder / "list.jsonl", rows)
    with open(path, "a") as file:
        file.write('{"file": "\\ud800"}\n[1]\n{"file": \n')
    listing = list_input(path)
    assert [entry.key for entry in listing.entries if entry.size] == ["2.png"]
    reasons = [reason for _, reason in listing.skipped]
    assert len(reasons) == len(rows) + 3 - len(listing.entries)
    for part in (
        "no path in a column", "not a regular file", "an archive", "ftp:// is not read",
        "NUL", "surrogate", "no object", "no JSON",
    ):  # fmt: skip
        assert any(part in reason for reason in reasons), part


def test_paths_out_of_the_lists_folder_are_read_and_counted(folder: Path) -> None:
    inner = folder / "lists"
    inner.mkdir()
    rows = [{"path": "../2.png"}, {"path": str(folder / "a/1.png")}]
    listing = list_input(write_list(inner / "list.csv", rows))
    keys = [entry.key for entry in listing.entries]
    assert keys == ["../2.png", str(folder / "a/1.png").lstrip("/")]
    assert listing.unused == [("list.csv", "2 of its paths lead out of its folder")]


def test_columns_can_be_named(folder: Path) -> None:
    rows = [{"path": "nowhere.png", "Photo": "2.png", "kind": "dog", "label": "x"}]
    fields = Fields(image_column="Photo", label_column="kind")
    for suffix in ("csv", "jsonl", "parquet"):
        listing = list_input(write_list(folder / f"list.{suffix}", rows), "field", fields)
        (entry,) = listing.entries
        assert (entry.key, entry.label_name) == ("2.png", "dog"), suffix
    with pytest.raises(InputError, match=r'no column "size", but'):
        list_input(folder / "list.csv", "none", Fields(image_column="size"))


def test_a_list_is_read_only_where_it_is_named(folder: Path) -> None:
    write_list(folder / "list.csv", ROWS)
    write_list(folder / "list.parquet", ROWS)
    listing = list_input(folder)
    assert [entry.key for entry in listing.entries] == ["2.png", "a/1.png"]
    assert "no column of bytes" in dict(listing.skipped)["list.parquet"]


def test_numbers_of_csv_are_numbers_and_others_are_text(folder: Path) -> None:
    (folder / "list.csv").write_text(
        "path,a,b,c,d\n2.png,007,-3,1.50,1e5\na/1.png,,12345678901234567890,0.5,x\n"
    )
    found = [
        json.loads(e.carried or "") for e in list_input(folder / "list.csv", fields=ALL).entries
    ]
    assert found == [
        {"a": "007", "b": -3, "c": 1.5, "d": "1e5"},
        {"b": "12345678901234567890", "c": 0.5, "d": "x"},
    ]


def listed(path: Path) -> Listing | InputError:
    try:
        return list_sources(path, "field", ALL)
    except InputError as error:
        return error


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = SCALARS | st.lists(SCALARS, max_size=2) | st.just({"a": {"b": 1}})
NAMES = st.sampled_from(["path", "file", "", "label", "caption", "text", "key", "é", "\ud800"])


@settings(max_examples=examples(25))
@given(rows=st.lists(st.dictionaries(NAMES, JSON, max_size=5), max_size=5))
def test_any_objects_are_images_or_named(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = listed(path)
    assert isinstance(found, Listing)
    assert len(found.table) + len(found.skipped) == len(rows)
    found.table.validate(full=True)
    for entry in found.entries:
        assert entry.carried is None or isinstance(json.loads(entry.carried), dict)
