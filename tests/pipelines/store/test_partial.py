"""Durable pieces of unfinished tasks: whole or as good as none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.store import INDEX_SCHEMA, StoreError, fill_value
from pipelines.store.layout import staging_path
from pipelines.store.partial import read_partial_shards, remove_partial_shards, write_partial_shard
from pipelines.store.shards import row_checksums


@pytest.fixture
def root(tmp_path: Path) -> Path:
    staging_path(tmp_path).mkdir()
    return tmp_path


def piece(first: int, rows: int, seed: int = 0) -> tuple[dict[str, np.ndarray], pa.Table]:
    """Codes of two tracks and index lines for rows `first` on; the last row holds none."""
    random = np.random.default_rng(seed)
    codes = {
        "depth": random.integers(0, 9, (rows, 2, 3)).astype("<u4"),
        "image": random.integers(0, 9, (rows, 2, 3)).astype("<u2"),
    }
    for track in codes.values():
        track[-1] = fill_value(track.dtype)
    lines = [
        {
            "key": f"{row}.jpg",
            "source": f"/{row}.jpg",
            "grid": "2x3",
            "row": row,
            "view": 0,
            "status": "ok" if row < first + rows - 1 else "broken",
            "checksum": checksum,
        }
        for row, checksum in enumerate(row_checksums(codes["image"]), first)
    ]
    return codes, pa.Table.from_pylist(lines, INDEX_SCHEMA)


def test_pieces_come_back_in_order(root: Path) -> None:
    for first in (8, 0, 4):
        write_partial_shard(root, "2x3", 1, first, *piece(first, 4, seed=first))
    write_partial_shard(root, "2x3", 11, 0, *piece(0, 4))
    write_partial_shard(root, "2x30", 1, 0, *piece(0, 4))
    found = read_partial_shards(root, "2x3", 1)
    assert [part.first for part in found] == [0, 4, 8]
    for part in found:
        codes, index = piece(part.first, 4, seed=part.first)
        assert part.index.equals(index)
        assert list(part.codes) == list(codes)
        for track, rows in codes.items():
            assert part.codes[track].dtype == rows.dtype
            np.testing.assert_array_equal(part.codes[track], rows)


def test_a_shorter_piece_takes_no_place_of_a_longer_one(root: Path) -> None:
    write_partial_shard(root, "2x3", 1, 4, *piece(4, 6))
    write_partial_shard(root, "2x3", 1, 4, *piece(4, 2))
    assert [len(part.index) for part in read_partial_shards(root, "2x3", 1)] == [2, 6]


def test_torn_and_damaged_pieces_are_as_good_as_none(root: Path) -> None:
    write_partial_shard(root, "2x3", 1, 0, *piece(0, 4))
    write_partial_shard(root, "2x3", 1, 4, *piece(4, 4))
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


def test_a_committed_task_keeps_no_pieces(root: Path) -> None:
    write_partial_shard(root, "2x3", 1, 0, *piece(0, 4))
    write_partial_shard(root, "2x3", 11, 0, *piece(0, 4))
    remove_partial_shards(root, "2x3", 1)
    remove_partial_shards(root, "2x3", 1)
    assert read_partial_shards(root, "2x3", 1) == []
    assert len(read_partial_shards(root, "2x3", 11)) == 1


def test_a_store_that_is_gone_is_not_made_again(root: Path) -> None:
    staging_path(root).rmdir()
    assert read_partial_shards(root, "2x3", 1) == []
    with pytest.raises(StoreError, match="emptied by another run"):
        write_partial_shard(root, "2x3", 1, 0, *piece(0, 4))
    assert list(root.iterdir()) == []
