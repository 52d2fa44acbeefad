"""Partial shards of unfinished tasks: intact or ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.store import StoreError
from pipelines.store.layout import staging_path
from pipelines.store.partial import (
    read_partial_shards,
    remove_partial_shards,
    task_of_partial_shard,
    write_partial_shard,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    staging_path(tmp_path).mkdir()
    return tmp_path


Rows = tuple[np.ndarray, pa.Table, list[tuple[str, ...]]]


def some_rows(rows: int, seed: int = 0, dtype: str = "<u2") -> Rows:
    """Codes, lines and environments of some rows; the last has none."""
    codes = np.random.default_rng(seed).integers(0, 9, (rows, 2, 3)).astype(dtype)
    codes[-1] = 255
    statuses = ["ok"] * (rows - 1) + [None]
    lines = pa.table({"status": statuses, "width": pa.array(range(rows), pa.int32())})
    return codes, lines, [("a", "b")] + [("a",)] * (rows - 2) + [()]


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<f4"])
def test_partial_shards_are_read_in_order(root: Path, dtype: str) -> None:
    for first in (8, 0, 4):
        write_partial_shard(root, "2x3", 1, first, *some_rows(4, first, dtype))
    write_partial_shard(root, "2x3", 11, 0, *some_rows(4))
    write_partial_shard(root, "2x30", 1, 0, *some_rows(4))
    found = read_partial_shards(root, "2x3", 1)
    assert [part.first for part in found] == [0, 4, 8]
    for part in found:
        codes, lines, made_in = some_rows(4, part.first, dtype)
        assert part.lines.equals(lines)
        assert part.made_in == made_in
        assert part.codes.dtype == codes.dtype
        np.testing.assert_array_equal(part.codes, codes)


def test_a_shorter_one_replaces_no_longer_one(root: Path) -> None:
    write_partial_shard(root, "2x3", 1, 4, *some_rows(6))
    write_partial_shard(root, "2x3", 1, 4, *some_rows(2))
    assert [len(part.lines) for part in read_partial_shards(root, "2x3", 1)] == [2, 6]


def test_torn_and_corrupt_ones_are_ignored(root: Path) -> None:
    write_partial_shard(root, "2x3", 1, 0, *some_rows(4))
    write_partial_shard(root, "2x3", 1, 4, *some_rows(4))
    path = next(staging_path(root).glob("2x3-1-0-4.partial-shard"))
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        assert [part.first for part in read_partial_shards(root, "2x3", 1)] == [4]
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert [part.first for part in read_partial_shards(root, "2x3", 1)] == [4]
    path.write_bytes(whole)
    assert len(read_partial_shards(root, "2x3", 1)) == 2


def test_those_of_one_task_are_removed_alone(root: Path) -> None:
    write_partial_shard(root, "2x3", 1, 0, *some_rows(4))
    write_partial_shard(root, "2x3", 11, 0, *some_rows(4))
    remove_partial_shards(root, "2x3", 1)
    remove_partial_shards(root, "2x3", 1)
    assert read_partial_shards(root, "2x3", 1) == []
    assert len(read_partial_shards(root, "2x3", 11)) == 1


def test_a_file_name_gives_its_task(root: Path) -> None:
    write_partial_shard(root, "2x30", 11, 4, *some_rows(3))
    (path,) = staging_path(root).iterdir()
    assert task_of_partial_shard(path) == ("2x30", 11)
    for name in ("driver.lock", "2x30-11-image-0123.shard", f"{path.name}.0a.partial"):
        assert task_of_partial_shard(path.with_name(name)) is None


def test_an_emptied_staging_folder_is_not_made_again(root: Path) -> None:
    staging_path(root).rmdir()
    assert read_partial_shards(root, "2x3", 1) == []
    with pytest.raises(StoreError, match="emptied by another run"):
        write_partial_shard(root, "2x3", 1, 0, *some_rows(4))
    assert list(root.iterdir()) == []
