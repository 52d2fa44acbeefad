"""CodeStore: plain tools read the same, rows are current ones, corruption is an error."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store import CodeStore, StoreError, code_dtype, commit_task, fill_value
from pipelines.store.commit import publish_task, read_part
from pipelines.store.layout import index_path, shard_path, staging_path
from pipelines.store.shards import shard_bytes, shard_rows, shard_size
from pipelines.store.zarr_metadata import inner_rows
from tests.conftest import make_store


def some_codes(rows: int = 21, height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16, (rows, height, width))


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    labels = [row % 3 if row % 5 else None for row in range(21)]
    path = make_store(tmp_path / "codes.zarr", some_codes(), failed=(2, 9), labels=labels)
    return CodeStore.open(path)


def test_plain_zarr_reads_what_the_memory_map_reads(store: CodeStore) -> None:
    array = zarr.open(str(store.path), mode="r")["g4x6/image"]
    rows = store.ok_rows("4x6")
    assert array.shape == (21, 4, 6)
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array[:][rows], store.read("4x6", rows))
    np.testing.assert_array_equal(array[:][rows], some_codes()[rows])
    assert (array[2] == 65535).all()


def test_plain_zarr_lists_the_arrays_and_nothing_else(store: CodeStore) -> None:
    group = zarr.open_group(str(store.path), mode="r")
    assert list(group.group_keys()) == ["g4x6"]
    assert list(group["g4x6"].array_keys()) == ["image"]


def test_a_shard_file_is_its_rows_from_byte_zero(store: CodeStore) -> None:
    path = shard_path(store.path, "4x6", "image", 1)
    rows = np.memmap(path, "<u2", "r", shape=(8, 4, 6))
    np.testing.assert_array_equal(rows[2:], some_codes()[10:16])


def test_plain_parquet_reads_the_index(store: CodeStore) -> None:
    table = pq.read_table(store.path / "_index")
    assert len(table) == len(store.index) == 21
    assert table["status"].to_pylist().count("ok") == len(store) == 19


def test_rows_are_read_one_by_one_in_index_order(store: CodeStore) -> None:
    assert store[2]["key"] == "0003.jpg"
    assert store[-1]["key"] == "0020.jpg"
    assert [row["row"] for row in store] == store.ok_rows("4x6").tolist()
    np.testing.assert_array_equal(store[2]["codes"], some_codes()[3])
    with pytest.raises(IndexError, match="19 rows"):
        store[19]


def test_batches_hold_every_current_row_once(store: CodeStore) -> None:
    batches = list(store.batches(8))
    assert [len(batch["codes"]) for batch in batches] == [8, 8, 3]
    codes = np.concatenate([batch["codes"].numpy() for batch in batches])
    np.testing.assert_array_equal(codes, np.delete(some_codes(), [2, 9], axis=0))
    assert [key for batch in batches for key in batch["key"]] == [row["key"] for row in store]
    assert batches[0]["label"].tolist() == [-1, 1, 0, 1, -1, 0, 1, 2]
    assert store.label_names == ["class0", "class1", "class2"]


@given(rows=st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_rows_are_read_in_the_order_asked(tmp_path_factory: pytest.TempPathFactory, rows) -> None:
    path = tmp_path_factory.getbasetemp() / "order.zarr"
    if not path.exists():
        make_store(path, some_codes())
    got = CodeStore.open(path).read("4x6", np.array(rows))
    np.testing.assert_array_equal(got, some_codes()[rows])


def test_rows_outside_the_index_are_refused(store: CodeStore) -> None:
    for row in (21, 23, 24, 1000, -1):
        with pytest.raises(StoreError, match="not all in the index"):
            store.read("4x6", np.array([0, row]))
    with pytest.raises(StoreError, match="no codes of grid 8x8"):
        store.ok_rows("8x8")
    with pytest.raises(StoreError, match="no track 'depth'"):
        store.track("depth")


def test_a_store_can_be_pickled(store: CodeStore) -> None:
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy[3]["codes"], store[3]["codes"])


def test_a_missing_or_short_shard_is_an_error_and_not_fill(store: CodeStore) -> None:
    path = shard_path(store.path, "4x6", "image", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="expected"):
        CodeStore.open(store.path)
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        CodeStore.open(store.path)


def test_a_staged_shard_is_read_until_it_is_published(store: CodeStore) -> None:
    staged = staging_path(store.path) / read_part(store.path, "4x6", 1)[1]["image"]["file"]
    shard_path(store.path, "4x6", "image", 1).rename(staged)
    np.testing.assert_array_equal(
        CodeStore.open(store.path).read("4x6", np.arange(10, 16)), some_codes()[10:16]
    )
    publish_task(store.path, "4x6", 1)
    publish_task(store.path, "4x6", 1)
    assert not staged.exists()
    CodeStore.open(store.path)


def test_replaced_rows_are_hidden_by_newer_ones_that_are_ok(store: CodeStore) -> None:
    index, _ = read_part(store.path, "4x6", 2)
    lines = index.to_pylist()
    lines[0]["replaces"] = "4x6/3"
    lines[1] |= {"replaces": "4x6/4", "status": "broken"}
    index_path(store.path, "4x6", 2).unlink()
    codes = some_codes()[16:].astype("<u2")
    commit_task(store.path, "4x6", 2, 8, {"image": codes}, index.from_pylist(lines, index.schema))
    rows = CodeStore.open(store.path).ok_rows("4x6")
    assert 3 not in rows
    assert {4, 16} <= set(rows.tolist())
    assert 17 not in rows


@pytest.mark.parametrize(("number", "age"), [(2, "an older"), (4, "a newer")])
def test_a_store_of_another_format_is_refused(store: CodeStore, number: int, age: str) -> None:
    path = store.path / "zarr.json"
    path.write_text(path.read_text().replace('"format": 3', f'"format": {number}'))
    with pytest.raises(StoreError, match=rf"written by {age} version of smalti \(format {number}"):
        CodeStore.open(store.path)


def test_a_part_of_another_format_is_refused_by_name(store: CodeStore) -> None:
    path = index_path(store.path, "4x6", 1)
    table = pq.read_table(path).replace_schema_metadata({b"smalti": b'{"format": 1}'})
    pq.write_table(table, path)
    with pytest.raises(StoreError, match=r"1\.parquet was written by an older version of smalti"):
        CodeStore.open(store.path)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no zarr"):
        CodeStore.open(tmp_path)
    zarr.open_group(str(tmp_path / "other.zarr"), mode="w")
    with pytest.raises(StoreError, match="attribute"):
        CodeStore.open(tmp_path / "other.zarr")


@given(rows_per_task=st.integers(1, 300), share=st.floats(0, 1))
def test_shards_have_the_expected_size(rows_per_task: int, share: float) -> None:
    rows = max(1, round(share * rows_per_task))
    codes = np.zeros((rows, 2, 3), "<u2")
    data = shard_bytes(codes, rows_per_task)
    assert len(data) == shard_size(rows, rows_per_task, 12)
    assert rows <= shard_rows(rows, rows_per_task) <= rows_per_task
    assert rows_per_task % inner_rows(rows_per_task) == 0


def test_codes_and_the_fill_fit_their_type() -> None:
    assert code_dtype(65535) == np.uint16
    assert code_dtype(65536) == np.uint32
    assert fill_value(code_dtype(65535)) >= 65535


def test_reading_no_rows_gives_an_empty_array(tmp_path: Path) -> None:
    codes = np.arange(12).reshape(3, 2, 2)
    for compress in (False, True):
        store = CodeStore.open(make_store(tmp_path / f"{compress}.zarr", codes, compress=compress))
        assert store.read("2x2", np.array([], np.int64)).shape == (0, 2, 2)
