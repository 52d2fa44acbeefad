"""Tombstones: parts are only added, and the rows in them are hidden from readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.store import CodeStore, StoreError, commit_task
from pipelines.store.commit import read_part
from pipelines.store.layout import index_path, tombstones_path
from pipelines.store.tombstones import read_tombstones, write_tombstones
from tests.conftest import make_store

GRID = "4x6"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    codes = np.random.default_rng(0).integers(0, 16, (21, 4, 6))
    return make_store(tmp_path / "codes.zarr", codes, failed=(2, 9))


def prune(path: Path, *rows: int) -> None:
    lines = [{"key": f"{row:04d}.jpg", "grid": GRID, "row": row} for row in rows]
    write_tombstones(path, pa.Table.from_pylist(lines))


def say(path: Path, task: int, changes: dict[int, dict]) -> None:
    """Commit a task again with other values in some of its index lines."""
    index, _ = read_part(path, GRID, task)
    codes = CodeStore.open(path).read(GRID, index["row"].to_numpy())
    lines = [line | changes.get(line["row"], {}) for line in index.to_pylist()]
    index_path(path, GRID, task).unlink()
    commit_task(path, GRID, task, 8, {"image": codes}, pa.Table.from_pylist(lines, index.schema))


def rows_of(path: Path) -> set[int]:
    return set(CodeStore.open(path).ok_rows(GRID).tolist())


def failed_of(path: Path) -> set[int]:
    return set(CodeStore.open(path).failed["row"].to_pylist())


def test_only_rows_with_a_tombstone_are_hidden(path: Path) -> None:
    before = rows_of(path)
    prune(path, 0, 9, 20)
    assert rows_of(path) == before - {0, 20}
    assert failed_of(path) == {2}
    store = CodeStore.open(path)
    assert len(store) == 17
    assert {row["row"] for row in store} == before - {0, 20}
    assert sum(len(batch["key"]) for batch in store.batches(5)) == 17
    assert len(store.index) == 21


def test_later_parts_add_tombstones(path: Path) -> None:
    assert len(read_tombstones(path)) == 0
    prune(path, 5)
    first = tombstones_path(path, 0).read_bytes()
    prune(path, 6, 7)
    assert read_tombstones(path)["row"].to_pylist() == [5, 6, 7]
    assert read_tombstones(path)["key"].to_pylist() == ["0005.jpg", "0006.jpg", "0007.jpg"]
    assert tombstones_path(path, 0).read_bytes() == first
    assert not {5, 6, 7} & rows_of(path)


def test_a_pruned_row_still_hides_the_row_it_replaced(path: Path) -> None:
    say(path, 2, {16: {"replaces": f"{GRID}/3"}})
    assert {3, 16} & rows_of(path) == {16}
    prune(path, 16)
    assert not {3, 16} & rows_of(path)


def test_pruning_a_failed_row_hides_the_older_rows_of_its_image(path: Path) -> None:
    broken = {"status": "broken", "error": "torn"}
    say(path, 1, {10: {"replaces": f"{GRID}/3", **broken}})
    say(path, 2, {16: {"replaces": f"{GRID}/10", **broken}})
    assert 3 in rows_of(path)
    prune(path, 16)
    assert not {3, 10, 16} & (rows_of(path) | failed_of(path))


def test_an_image_planned_again_is_shown(path: Path) -> None:
    prune(path, 3)
    say(path, 2, {16: {"key": "0003.jpg"}})
    store = CodeStore.open(path)
    assert [row["row"] for row in store if row["key"] == "0003.jpg"] == [16]


def test_a_part_is_never_overwritten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune(path, 5)
    before = tombstones_path(path, 0).read_bytes()
    monkeypatch.setattr("pipelines.store.tombstones._num_parts", lambda root: 0)
    with pytest.raises(StoreError, match="written by another process"):
        prune(path, 6)
    assert tombstones_path(path, 0).read_bytes() == before
    assert [p.name for p in tombstones_path(path, 0).parent.iterdir()] == ["0.parquet"]


def test_a_corrupt_part_is_an_error_with_a_remedy(path: Path) -> None:
    prune(path, 5)
    tombstones_path(path, 0).write_bytes(tombstones_path(path, 0).read_bytes()[:-9])
    with pytest.raises(StoreError, match="Restore it from a copy"):
        len(CodeStore.open(path))
