"""Before and after a run: leftovers of kills are removed or published, and each file is hashed
once, when it is new."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ops.files import file_hash
from pipelines.store import CodeStore, StoreError
from pipelines.store.commit import read_part
from pipelines.store.layout import (
    checksums_path,
    index_path,
    plan_path,
    shard_path,
    staging_path,
    tokenizer_path,
)
from pipelines.store.recovery import (
    empty_staging,
    forget_missing,
    publish_committed,
    read_checksums,
    remove_partials,
    write_checksums,
)
from pipelines.store.tombstones import write_tombstones
from tests.conftest import make_store
from tests.encode_run import everything

GRID = "4x6"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    codes = np.random.default_rng(0).integers(0, 16, (21, 4, 6))
    root = make_store(tmp_path / "codes.zarr", codes)
    for file in (plan_path(root, 0), tokenizer_path(root, "image") / "config.json"):
        file.parent.mkdir(parents=True)
        file.write_text(file.name)
    return root


def test_only_half_written_files_are_removed(path: Path) -> None:
    before = everything(path)
    for name in (
        "zarr.json.1.partial",
        "_plan/0.parquet.1.partial",
        "_tombstones/0.parquet.1.partial",
        "_staging/4x6-0.parquet.1.partial",
        "_tokenizer/image.1.partial/config.json",
        f"g{GRID}/zarr.json.1.partial",
        f"g{GRID}/image/zarr.json.1.partial",
    ):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    remove_partials(path)
    assert everything(path) == before


def test_shards_committed_just_before_a_kill_are_published(path: Path) -> None:
    before = everything(path)
    staged = []
    for task in (0, 2):
        name = read_part(path, GRID, task)[1]["image"]["file"]
        staged.append(staging_path(path) / name)
        shard_path(path, GRID, "image", task).rename(staged[-1])
    (staging_path(path) / f"{GRID}-7-image-0123.shard").touch()  # of a task not committed
    publish_committed(path)
    assert [p.name for p in staging_path(path).iterdir()] == [f"{GRID}-7-image-0123.shard"]
    empty_staging(path)
    assert everything(path) == before


def test_only_the_lock_stays_in_staging(path: Path) -> None:
    for name in ("driver.lock", "4x6-0-image-01.shard", "4x6-0-0-4.partial-shard", "x.1.partial"):
        (staging_path(path) / name).touch()
    empty_staging(path)
    assert [p.name for p in staging_path(path).iterdir()] == ["driver.lock"]


def test_checksums_are_those_of_the_files(path: Path) -> None:
    assert read_checksums(path) is None
    write_tombstones(path, pa.table({"key": ["0003.jpg"], "grid": [GRID], "row": [3]}))
    write_checksums(path)
    checksums = read_checksums(path)
    assert checksums == {name: file_hash(path / name) for name in checksums}
    assert list(checksums) == [
        *(f"_index/{GRID}/{task}.parquet" for task in range(3)),
        "_plan/0.parquet",
        "_tokenizer/image/config.json",
        "_tombstones/0.parquet",
    ]


def test_checksums_are_written_only_when_something_is_new(path: Path) -> None:
    write_checksums(path)
    status = checksums_path(path).stat()
    forget_missing(path)
    write_checksums(path)
    assert checksums_path(path).stat() == status
    plan_path(path, 1).touch()
    write_checksums(path)
    assert "_plan/1.parquet" in (read_checksums(path) or {})


def test_checksums_of_corrupt_files_are_not_replaced(path: Path) -> None:
    write_checksums(path)
    before = read_checksums(path)
    for name in before or {}:
        (path / name).write_bytes(b"corrupt")
    forget_missing(path)
    write_checksums(path)
    assert read_checksums(path) == before


def test_a_file_made_again_gets_a_new_checksum_even_after_a_kill(path: Path) -> None:
    write_checksums(path)
    part = index_path(path, GRID, 1)
    part.unlink()
    forget_missing(path)
    part.write_bytes(b"made again; then the driver was killed")
    forget_missing(path)
    write_checksums(path)
    assert (read_checksums(path) or {})[f"_index/{GRID}/1.parquet"] == file_hash(part)


@pytest.mark.parametrize("name", ["_plan/0.parquet", "_tombstones/0.parquet"])
def test_checksums_of_plan_and_tombstones_are_not_dropped(path: Path, name: str) -> None:
    write_tombstones(path, pa.table({"key": ["0003.jpg"], "grid": [GRID], "row": [3]}))
    write_checksums(path)
    before = checksums_path(path).read_bytes()
    (path / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: missing. Restore it from a copy"):
        forget_missing(path)
    assert checksums_path(path).read_bytes() == before


def test_corrupt_checksums_are_refused(path: Path) -> None:
    write_checksums(path)
    file = checksums_path(path)
    whole = file.read_bytes()
    data = json.loads(whole)
    corrupt = [whole[:length] for length in range(0, len(whole), 41)] + [whole[:-1]]
    corrupt += [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        for place in range(0, len(whole), 17)
    ]
    corrupt += [b"[]", b"5", b"null", json.dumps(data).encode()]
    corrupt.append(json.dumps({**data, "_plan/0.parquet": "0" * 64}, indent=2).encode() + b"\n")
    for content in corrupt:
        file.write_bytes(content)
        for use in (read_checksums, write_checksums, forget_missing):
            with pytest.raises(StoreError, match="Remove it and run encode again"):
                use(path)
    assert len(CodeStore.open(path)) == 21
