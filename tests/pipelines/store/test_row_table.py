"""The row table: what the index says in full, kept in files that are never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store import (
    CodeStore,
    commit_task,
    index_path,
    numbered_images,
    row_table,
    write_metadata,
)
from pipelines.store import reader as reader_module
from pipelines.store.row_table import KEPT_FROM
from pipelines.store.tombstones import write_tombstones
from pipelines.store.zarr_metadata import read_attributes
from tests.conftest import make_store

GRID = "2x3"
COLUMNS = {
    "key": [f"{row // 2}.jpg" for row in range(21)],  # two views each
    "view": [row % 2 for row in range(21)],
    "replaces": [None] * 17 + [f"{GRID}/1", f"{GRID}/17", None, f"{GRID}/5"],
    "content": [f"{row % 9:032x}" for row in range(21)],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with views, failed rows, rows that replace others, and a tombstone."""
    codes = np.random.default_rng(0).integers(0, 16, (21, 2, 3))
    labels = [row % 3 if row % 5 else None for row in range(21)]
    columns = {"labels": labels, "columns": COLUMNS, "failed": (2, 9, 20)}
    path = make_store(tmp_path / "codes.zarr", codes, **columns)
    write_tombstones(path, pa.table({"key": ["3.jpg"], "grid": [GRID], "row": [7]}))
    return path


@pytest.fixture
def kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same store once its table is kept."""
    monkeypatch.setattr(row_table, "KEPT_FROM", 0)
    CodeStore.open(path, cache_dir=path.parent / "cache")
    return path


def open_again(path: Path) -> CodeStore:
    return CodeStore.open(path, cache_dir=path.parent / "cache")


def figures(store: CodeStore) -> dict[str, object]:
    """All that a store says without its whole index."""
    rows = store.ok_rows(GRID)
    return {
        "rows": rows.tolist(),
        "labels": store.labels(GRID, rows).tolist(),
        "length": len(store),
        "grids": store.grids,
        "failed": store.failed.to_pylist(),
        "notable": store.notable.to_pylist(),
        "images": store.rows.image.tolist(),
        "hashes": store.rows.key_hash.tolist(),
    }


def no_lines(*_: object) -> None:
    raise AssertionError("the lines of an index part were read")


def test_the_table_is_what_the_whole_index_says(path: Path) -> None:
    store = open_again(path)
    lines = {line["row"]: line for line in store.index.to_pylist()}
    hidden = {1, 17, 7}  # replaced, replaced by a row that is ok, and with a tombstone
    rows = [r for r, line in lines.items() if line["status"] == "ok" and r not in hidden]
    keys = [lines[row]["key"] for row in rows]
    assert store.rows.row.tolist() == rows
    assert store.rows.label.tolist() == [
        -1 if lines[row]["label"] is None else lines[row]["label"] for row in rows
    ]
    assert store.rows.image.tolist() == [list(dict.fromkeys(keys)).index(key) for key in keys]
    assert store.rows.key_hash.tolist() == [
        int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") for key in keys
    ]


def test_notable_lines_are_those_that_are_not_as_the_others(path: Path) -> None:
    store = open_again(path)
    lines = store.index.to_pylist()
    first = [line for line in lines if line["view"] == 0 and line["status"] == "ok"]
    contents = [line["content"] for line in first]
    twice = [line["row"] for line in first if contents.count(line["content"]) > 1]
    marked = [row["row"] for row in lines if row["status"] != "ok" or row["replaces"]]
    assert store.notable["row"].to_pylist() == sorted({*marked, *twice})


def test_a_table_is_read_in_place_of_the_index(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_table, "KEPT_FROM", KEPT_FROM)
    other = kept.parent / "other.zarr"
    shutil.copytree(kept, other, ignore=shutil.ignore_patterns("_rows"))
    expected = figures(open_again(other))
    assert not (other / "_rows").exists()  # small stores keep none
    monkeypatch.setattr(reader_module, "read_part", no_lines)
    store = open_again(kept)
    assert figures(store) == expected
    assert isinstance(store.rows.row, np.memmap)


def test_another_process_maps_the_table_itself(kept: Path) -> None:
    store = open_again(kept)
    copy = pickle.loads(pickle.dumps(store))
    assert isinstance(copy.rows.row, np.memmap)
    assert figures(copy) == figures(store)
    unkept = row_table.RowTable({}, np.empty(0, np.int64), *[np.empty(0, np.int32)] * 2, None)
    assert pickle.loads(pickle.dumps(unkept)).grids == {}


def test_a_store_that_grew_has_another_table(kept: Path) -> None:
    (before,) = (kept / "_rows").iterdir()
    attributes = read_attributes(kept)
    lines = open_again(kept).index.slice(0, 2)
    lines = lines.set_column(lines.schema.get_field_index("row"), "row", pa.array([24, 25]))
    codes = np.ones((2, 2, 3), np.uint16)
    commit_task(kept, GRID, 3, 8, {"image": codes}, lines)
    write_metadata(kept, type(attributes)(**{**vars_of(attributes), "grids": {GRID: 26}}))
    assert open_again(kept).ok_rows(GRID)[-2:].tolist() == [24, 25]
    (after,) = (kept / "_rows").iterdir()  # the older one is gone
    assert after != before


def vars_of(attributes: object) -> dict[str, object]:
    return {name: getattr(attributes, name) for name in attributes.__dataclass_fields__}


def test_an_index_part_that_was_written_again_is_read_again(kept: Path) -> None:
    part = index_path(kept, GRID, 1)
    lines = open_again(kept).index.slice(8, 8)
    codes = open_again(kept).read(GRID, np.arange(8, 16))
    part.unlink()
    lines = lines.set_column(lines.schema.get_field_index("label"), "label", pa.array([1] * 8))
    commit_task(kept, GRID, 1, 8, {"image": codes}, lines)
    assert open_again(kept).labels(GRID, np.array([8, 10, 15])).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("row.npy", b""),
        ("row.npy", b"\x93NUMPY"),
        ("label.npy", None),
        ("table.json", b"[]"),
        ("table.json", json.dumps({"format": 1, "grids": {GRID: 99}}).encode()),
        ("table.json", json.dumps({"format": 1, "grids": {"../x": 15}}).encode()),
        ("table.json", json.dumps({"format": 0, "grids": {GRID: 15}}).encode()),
    ],
)
def test_a_damaged_table_is_made_anew(kept: Path, name: str, content: bytes | None) -> None:
    expected = figures(open_again(kept))
    (folder,) = (kept / "_rows").iterdir()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert figures(open_again(kept)) == expected


def test_a_table_with_other_classes_than_the_store_is_not_used(kept: Path) -> None:
    expected = figures(open_again(kept))
    (folder,) = (kept / "_rows").iterdir()
    labels = np.load(folder / "label.npy")
    np.save(folder / "label.npy", np.full_like(labels, 3))
    assert figures(open_again(kept)) == expected


def test_lines_that_were_damaged_are_read_from_the_index(kept: Path) -> None:
    expected = figures(open_again(kept))
    (folder,) = (kept / "_rows").iterdir()
    (folder / "notable.parquet").write_bytes(b"PAR1")
    assert figures(open_again(kept)) == expected


def test_the_table_of_a_store_that_cannot_be_written_is_in_the_cache(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = figures(open_again(kept))
    shutil.rmtree(kept / "_rows")
    (kept / "_rows").write_text("no folder")
    assert figures(open_again(kept)) == expected
    monkeypatch.setattr(reader_module, "read_part", no_lines)
    assert figures(open_again(kept)) == expected
    assert list((kept.parent / "cache" / "rows").glob("*/*/row.npy"))


def test_processes_that_keep_a_table_at_the_same_time_keep_one(kept: Path) -> None:
    shutil.rmtree(kept / "_rows")
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(open_again, [kept] * 8))
    assert len({tuple(store.rows.row.tolist()) for store in stores}) == 1
    assert [path.suffix for path in (kept / "_rows").iterdir()] == [""]


@given(st.lists(st.integers(0, 6)))
def test_images_are_numbered_as_they_first_occur(keys: list[int]) -> None:
    found = numbered_images(np.array(keys, np.uint64))
    expected = [list(dict.fromkeys(keys)).index(key) for key in keys]
    assert (list(range(len(keys))) if found is None else found.tolist()) == expected
