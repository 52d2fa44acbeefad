"""A store from elsewhere is data: nothing outside it is read, moved or removed, and what no store
of ours holds is refused when it is opened or read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.config import UserError
from ops.files import LockedError, NotRegularError, exclusive_lock
from pipelines.planning.plan import read_plan
from pipelines.store import CodeStore, StoreError, fill_value, publish_committed, read_checksums
from pipelines.store.layout import (
    grid_shape,
    index_path,
    locked,
    plan_path,
    shard_path,
    staging_path,
    track_path,
)
from pipelines.streaming import CodeDataset
from pipelines.tracks import verify_store
from tests.conftest import make_store
from tests.pipelines.store.foreign import GRID, change_json, change_parquet, planned_store

PART = f"_index/{GRID}/1.parquet"
SHARD = f"g{GRID}/image/c/1/0/0"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("x" * 200)
    return tmp_path / "victim"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return planned_store(tmp_path / "store")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- links, pipes


@pytest.mark.parametrize("name", ["_staging", "_index", f"_index/{GRID}", "_plan", f"g{GRID}",
                                  f"g{GRID}/image", f"g{GRID}/image/c", f"g{GRID}/image/c/1",
                                  f"g{GRID}/image/c/1/0", "_tracks", "_tombstones", "_tokenizer",
                                  "_tokenizer/image", "_tracks/depth", "x.partial"])  # fmt: skip
@pytest.mark.parametrize("to", ["elsewhere", "parent", "nothing"])
def test_folder_that_is_a_link_is_refused(store: Path, victim: Path, name: str, to: str) -> None:
    path = store / name
    target = {"elsewhere": victim, "parent": path.parent, "nothing": victim / "none"}[to]
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.symlink_to(target)
    before = files_below(victim)
    with pytest.raises(StoreError, match="link"):
        CodeStore.open(store)
    with pytest.raises(StoreError, match="a symbolic link"), locked(store):
        pass
    assert any("symbolic link" in problem for problem in verify_store(store).problems)
    assert files_below(victim) == before


@pytest.mark.parametrize("name", [PART, SHARD, "_plan/0.parquet", "zarr.json", "_checksums.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_file_that_is_a_link_or_a_pipe_is_refused(store: Path, name: str, kind: str) -> None:
    path = store / name
    if kind == "link":
        path.rename(store.parent / "moved")
        path.symlink_to(store.parent / "moved")
    else:
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(StoreError):
        CodeStore.open(store).batches(4).__next__()
    with pytest.raises(StoreError), locked(store):
        pass
    assert any(str(path) in problem for problem in verify_store(store).problems)


def test_store_may_itself_be_named_by_a_link(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    assert len(CodeStore.open(tmp_path / "link")) == 9
    with locked(tmp_path / "link"):
        pass


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_lock_is_a_regular_file(tmp_path: Path, victim: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "link":
        path.symlink_to(victim / "made")
    else:
        (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    with pytest.raises(NotRegularError), exclusive_lock(path):
        pass
    assert not (victim / "made").exists()


def test_lock_whose_file_was_removed_meanwhile_is_not_held(tmp_path: Path, monkeypatch) -> None:
    path, flock = tmp_path / "lock", os.fstat

    def removed(descriptor: int) -> os.stat_result:
        path.unlink(missing_ok=True)
        return flock(descriptor)

    monkeypatch.setattr("ops.files.os.fstat", removed)
    with pytest.raises(LockedError), exclusive_lock(path):
        pass


def test_folder_that_an_error_leaves_empty_is_removed(tmp_path: Path) -> None:
    with pytest.raises(UserError), locked(tmp_path / "new"):
        raise UserError("no")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(UserError), locked(tmp_path / "old"):
        raise UserError("no")
    assert (tmp_path / "old").is_dir()


# --- names


@pytest.mark.parametrize("file", ["../victim/thesis.txt", "/etc/passwd", "", ".", "a/b", 7, None,
                                  "nul\0", "x" * 300, f"{GRID}-1-image-{'0' * 32}.shard"],
)  # fmt: skip
def test_shard_with_another_name_is_never_moved(store: Path, victim: Path, file: object) -> None:
    change_parquet(store / PART, lambda d: d["shards"]["image"].update(file=file))
    (staging_path(store) / f"{GRID}-1-image-x.shard").touch()
    before = files_below(store), files_below(victim)
    with pytest.raises(StoreError, match="corrupt index part"):
        publish_committed(store)
    with pytest.raises(StoreError, match="corrupt index part"):
        CodeStore.open(store)
    assert (files_below(store), files_below(victim)) == before


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "", ".", "..", "a\0b", "t" * 300, "Depth",
                                  "a/b", "dépth"])  # fmt: skip
def test_track_with_such_a_name_is_refused(store: Path, name: str) -> None:
    with pytest.raises(StoreError, match="no name of a track"):
        track_path(store, name)

    def add(attributes: dict[str, Any]) -> None:
        tracks = attributes["attributes"]["smalti"]["tracks"]
        tracks[name] = tracks["image"]

    change_json(store / "zarr.json", add)
    with pytest.raises(StoreError, match="no name of a track"):
        CodeStore.open(store)


@pytest.mark.parametrize("name", ["axb", "0x5", "5x0", "99999999x99999999", "8x", "x8", "8x8x8",
                                  "08x8", "-1x4", "8 x8", "../8x8", "٣x٣", "9000x9000", ""],
)  # fmt: skip
def test_grid_with_such_a_name_is_refused(store: Path, name: str) -> None:
    with pytest.raises(StoreError, match="no grid of codes"):
        grid_shape(name)
    change_json(store / "zarr.json", lambda d: d["attributes"]["smalti"]["grids"].update({name: 4}))
    with pytest.raises(StoreError, match="no grid of codes"):
        CodeStore.open(store)


@pytest.mark.parametrize("name", ["../../victim/thesis.txt", "/etc/passwd", "_index/../x", "x",
                                  "_tokenizer/image/../../x", "_staging/driver.lock"])  # fmt: skip
def test_checksums_name_files_of_the_store_only(store: Path, name: str) -> None:
    change_json(store / "_checksums.json", lambda d: d.update({name: "0" * 64}))
    with pytest.raises(StoreError, match="corrupt"):
        read_checksums(store)
    assert any("_checksums.json: corrupt" in problem for problem in verify_store(store).problems)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (f"_index/{GRID}/note.parquet", "Remove it"),
        (f"_index/{GRID}/._0.parquet", "Remove it"),
        (f"_index/{GRID}/01.parquet", "Remove it"),
        ("_index/notes/0.parquet", "Remove it"),
        ("_tombstones/a.parquet", "Remove it"),
    ],
)
def test_stray_parquet_file_is_refused_by_name(store: Path, name: str, match: str) -> None:
    path = store / name
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(store / PART, path)
    with pytest.raises(StoreError, match=match) as refused:
        len(CodeStore.open(store))
    assert str(path) in str(refused.value)
    if "_index" in name:
        assert any(str(path) in problem for problem in verify_store(store).problems)


def test_other_stray_files_are_ignored(store: Path) -> None:
    for name in (".DS_Store", f"_index/{GRID}/0.parquet~", "_index/.DS_Store", "_plan/notes.txt",
                 "_tokenizer/.DS_Store", f"g{GRID}/image/c/1/0/0.orig"):  # fmt: skip
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).touch()
    (store / f"_index/{GRID}/folder").mkdir()
    assert len(CodeStore.open(store)) == 9


def test_missing_part_of_a_plan_is_an_error(store: Path) -> None:
    plan_path(store, 0).rename(plan_path(store, 1))
    with pytest.raises(StoreError, match=r"0\.parquet: missing, but there are later ones"):
        read_plan(store)


# --- values


@pytest.mark.parametrize("value", [10**12, 0, -1, 4.0, "4", True, None, [4], 1 << 21])
def test_rows_per_task_of_no_store_is_refused(store: Path, value: object) -> None:
    def set_it(attributes: dict[str, Any]) -> None:
        attributes["attributes"]["smalti"]["rows_per_task"] = value

    change_json(store / "zarr.json", set_it)
    with pytest.raises(StoreError, match="rows_per_task"):
        CodeStore.open(store)
    change_parquet(plan_path(store, 0), lambda d: d["settings"].update(rows_per_task=value))
    with pytest.raises(StoreError, match="rows_per_task"):
        read_plan(store)


@pytest.mark.parametrize("value", [1 << 31, 0, -1, 16.0, "16", True, None])
def test_codebook_size_of_no_tokenizer_is_refused(store: Path, value: object) -> None:
    def set_it(attributes: dict[str, Any]) -> None:
        attributes["attributes"]["smalti"]["tracks"]["image"]["codebook_size"] = value

    change_json(store / "zarr.json", set_it)
    with pytest.raises(StoreError, match="codebook_size"):
        CodeStore.open(store)


def test_rows_of_another_task_or_beyond_the_grid_are_refused(store: Path) -> None:
    change_parquet(store / PART, columns={"row": [8, 9, 10, 11]})
    with pytest.raises(StoreError, match="not those of task 1"):
        CodeStore.open(store)
    change_parquet(store / PART, columns={"row": [4, 4, 5, 6]})
    with pytest.raises(StoreError, match="not consecutive"):
        CodeStore.open(store)
    change_parquet(store / PART, columns={"row": [4, 5, 6, 7]})
    change_json(store / "zarr.json", lambda d: d["attributes"]["smalti"]["grids"].update({GRID: 6}))
    with pytest.raises(StoreError, match="not those of task 1"):
        CodeStore.open(store)


def test_labels_beyond_the_classes_are_refused(store: Path) -> None:
    for label in (2, 2**31 - 1, -1):
        change_parquet(store / PART, columns={"label": [0, 1, label, 0]})
        with pytest.raises(StoreError, match="label"):
            CodeStore.open(store)


def test_codes_beyond_the_codebook_never_leave_the_store(store: Path) -> None:
    path = shard_path(store, GRID, "image", 1)
    data = bytearray(path.read_bytes())
    data[12:14] = (16).to_bytes(2, "little")  # the first code of row 5
    path.write_bytes(data)
    opened = CodeStore.open(store)
    assert opened.read(GRID, np.array([4, 6])).max() < 16
    refused = pytest.raises(StoreError, match="row 5 of grid 2x3 has code 16, but its tokenizer")
    with refused:
        opened.read(GRID, np.array([4, 5]))
    with refused:
        list(opened.batches(3))
    dataset = CodeDataset(opened, window=2, batch_size=9)
    with refused:
        dataset.train_batch(0)


def test_fill_is_read_of_failed_rows_only(store: Path) -> None:
    assert (
        CodeStore.open(store).read(GRID, np.array([0, 1]))[1] == fill_value(np.dtype("<u2"))
    ).all()
    change_parquet(store / f"_index/{GRID}/0.parquet", columns={"status": ["ok"] * 4})
    with pytest.raises(StoreError, match="row 1 of grid 2x3 has code 65535"):
        CodeStore.open(store).read(GRID, np.array([0, 1]))


def test_task_numbers_take_no_memory(store: Path) -> None:
    far = 999_999_999
    data = shard_path(store, GRID, "image", 0).read_bytes()
    shutil.copyfile(store / f"_index/{GRID}/0.parquet", index_path(store, GRID, far))

    def rename(description: dict[str, Any]) -> None:
        shard = description["shards"]["image"]
        shard["file"] = f"{GRID}-{far}-image-{shard['sha256'][:32]}.shard"

    first = far * 4
    change_parquet(index_path(store, GRID, far), rename, {"row": list(range(first, first + 4))})
    change_json(
        store / "zarr.json",
        lambda d: d["attributes"]["smalti"]["grids"].update({GRID: first + 4}),
    )
    shard_path(store, GRID, "image", far).parent.mkdir(parents=True)
    shard_path(store, GRID, "image", far).write_bytes(data)
    opened = CodeStore.open(store)
    assert opened.labels(GRID, np.array([0, 3, first, 17])).tolist() == [0, 0, 0, -1]
    assert (
        opened.read(GRID, np.array([0, first])).tolist()[0]
        == opened.read(GRID, np.array([first])).tolist()[0]
    )
    assert CodeDataset(opened, window=2, batch_size=12).train_batch(0)["codes"].shape == (12, 2, 2)


def test_long_text_in_few_bytes_is_refused(store: Path) -> None:
    """A dictionary of one long value in many rows: some kilobytes that would take 128 GB."""
    rows, path = 1 << 17, store / PART
    table = pq.ParquetFile(path).read()
    table = table.take(pa.array(np.zeros(rows, np.int64)))
    value = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["a" * (1 << 20)])
    place = table.schema.get_field_index("source")
    table = table.set_column(place, "source", value)
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(StoreError, match="bytes"):
        CodeStore.open(store)


def test_chain_of_replaced_rows_is_followed_once(tmp_path: Path) -> None:
    rows = 3000
    replaces = [None, *(f"1x1/{row}" for row in range(rows - 1))]
    path = make_store(
        tmp_path / "chain", np.zeros((rows, 1, 1), np.int64), rows_per_task=rows,
        columns={"replaces": replaces},
    )  # fmt: skip
    assert CodeStore.open(path).ok_rows("1x1").tolist() == [rows - 1]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff\xfe", b'{"attributes": ' + b"[" * 10**5, b'{"attributes": {"smalti": 7}}',
     b'{"attributes": {"smalti": {"format": NaN}}}', b'{"attributes": {"smalti": {"format": 3}}}'],
)  # fmt: skip
def test_metadata_that_is_no_description_is_refused(store: Path, content: bytes) -> None:
    (store / "zarr.json").write_bytes(content)
    with pytest.raises(StoreError):
        CodeStore.open(store)
    (store / "_checksums.json").write_bytes(content)
    with pytest.raises(StoreError):
        read_checksums(store)


def test_plan_of_other_rows_than_it_lists_is_refused(store: Path) -> None:
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda d: d["tasks"].append([GRID, 7, 4]),
        lambda d: d["tasks"][0].__setitem__(0, "../x"),
        lambda d: d["tasks"][0].__setitem__(1, -1),
        lambda d: d["tasks"][0].__setitem__(2, 3),
        lambda d: d["tasks"][1].__setitem__(1, 0),
        lambda d: d.update(label_names=[1]),
        lambda d: d["settings"].update(track=7),
    ]
    for change in changes:
        shutil.copyfile(plan_path(store, 0), store.parent / "plan")
        change_parquet(plan_path(store, 0), change)
        with pytest.raises(StoreError, match="corrupt plan"):
            read_plan(store)
        assert verify_store(store).problems
        shutil.copyfile(store.parent / "plan", plan_path(store, 0))
