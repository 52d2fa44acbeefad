"""A store in an object store: the objects are the files of one on a disk, whatever goes wrong."""

from __future__ import annotations

import json
import os
import socket
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import ObjectStore

from ops import object_store, paths
from ops.file_cache import CorruptObjectError
from ops.files import LockedError
from ops.paths import ObjectPath
from ops.transient_errors import TransientError
from pipelines import encode, verify
from pipelines.store import CodeStore, StoreError, empty_staging, lease
from pipelines.streaming import CodeDataset
from pipelines.tracks import verification, verify_store
from tests.crashes.null_encode import NullScenario, encode_files, null_scenarios
from tests.object_servers import S3, in_turn, proxy

UNRELATED = ("_staging/driver.lock",)  # a disk's, held locked; an object store's is removed


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> NullScenario:
    return null_scenarios(tmp_path_factory.mktemp("null") / "n")[0]


pytestmark = pytest.mark.usefixtures("short_waits")


def expected(scenario: NullScenario) -> dict[str, bytes]:
    return {n: data for n, data in scenario.uninterrupted.items() if n not in UNRELATED}


def run(scenario: NullScenario, out: ObjectPath) -> int:
    return encode_files(out, scenario.tokenizer, scenario.files)


def test_the_objects_are_the_files_of_a_store_on_a_disk(
    scenario: NullScenario, bucket: ObjectPath, s3: S3, tmp_path: Path
) -> None:
    out = bucket / "deep/codes.zarr"
    assert run(scenario, out) == 0
    assert s3.objects(out) == expected(scenario)
    assert run(scenario, out) == 0  # nothing to do
    assert s3.objects(out) == expected(scenario)
    store = CodeStore.open(str(out), cache_dir=tmp_path)
    assert len(store) == 8
    array = zarr.open(ObjectStore(object_store._client(out)), path=out.key, mode="r")
    for grid in store.grids:
        rows = store.ok_rows(grid)
        codes = store.read(grid, rows)
        np.testing.assert_array_equal(codes, array[f"g{grid}/image"][:][rows])


def test_faults_between_client_and_store_change_nothing(scenario: NullScenario, s3: S3) -> None:
    faults = ("503", "429", "reset", "lost", "twice")
    with proxy(s3, in_turn(faults, every=3)) as before, paths.storage_options(before.options):
        out = s3.bucket() / "codes.zarr"
        assert run(scenario, out) == 0
        assert min(before.counts[fault] for fault in faults) > 3
    assert s3.objects(out) == expected(scenario)


def test_a_store_is_verified_and_its_corrupt_rows_are_named(
    scenario: NullScenario,
    bucket: ObjectPath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "_problems_of_tokenizer", lambda *_: [])  # it is a stand-in
    out = bucket / "codes.zarr"
    assert run(scenario, out) == 0
    assert verify_store(out).problems == []
    shard = out / "g2x2" / "image" / "c" / "0" / "0" / "0"
    whole = paths.read_whole(shard)
    paths.write_whole(shard, bytes([whole[0] ^ 1]) + whole[1:])
    (problem,) = verify_store(out).problems
    assert problem.startswith(f"{shard}: corrupt in row 0. ")
    with pytest.raises(CorruptObjectError, match="Run verify"):
        CodeStore.open(out, cache_dir=tmp_path).read("2x2", np.array([1]))
    assert not copies(tmp_path)
    paths.write_whole(shard, whole[:-1])
    with pytest.raises(StoreError, match="expected"):
        CodeStore.open(out, cache_dir=tmp_path)
    paths.remove(shard)
    with pytest.raises(StoreError, match="shard is missing"):
        CodeStore.open(out, cache_dir=tmp_path)
    part = out / "_index" / "2x2" / "0.parquet"
    assert any(f"remove {part}" in problem for problem in verify_store(out).problems)


def test_a_run_that_is_cut_off_at_any_request_is_resumed_to_the_same_objects(
    scenario: NullScenario, s3: S3
) -> None:
    with proxy(s3, lambda *_: "") as before, paths.storage_options(before.options):
        assert run(scenario, s3.bucket() / "codes.zarr") == 0
        total = before.counts[""]
        for last in range(9, total, total // 3):
            left = count(last, -1)
            before.decide = lambda *_, left=left: "" if next(left) > 0 else "reset"
            out = s3.bucket() / "codes.zarr"
            with pytest.raises(TransientError):
                run(scenario, out)
            with paths.storage_options(s3.options):
                paths.remove(out / "_staging" / "driver.lock")
                assert run(scenario, out) == 0
            assert s3.objects(out) == expected(scenario)


def test_a_commit_that_arrives_after_another_one_changes_nothing(
    scenario: NullScenario, s3: S3
) -> None:
    late = iter([True])

    def decide(method: str, path: str) -> str:
        is_part = method == "PUT" and "_index/2x2/0" in path
        return "late" if is_part and next(late, False) else ""

    with proxy(s3, decide) as before, paths.storage_options(before.options):
        out = s3.bucket() / "codes.zarr"
        assert run(scenario, out) == 0
        assert s3.objects(out) == expected(scenario)
        assert before.release() == [412]
        assert s3.objects(out) == expected(scenario)


def test_a_staged_shard_of_another_driver_is_kept_until_it_is_committed(
    scenario: NullScenario, bucket: ObjectPath
) -> None:
    out = bucket / "codes.zarr"
    assert run(scenario, out) == 0
    shard = out / "_staging" / f"2x2-7-image-{'0' * 32}.shard"
    paths.write_whole(shard, b"of another driver")
    paths.write_whole(out / "_staging" / f"2x2-0-image-{'0' * 32}.shard", b"of an older attempt")
    empty_staging(out)
    assert [each.path for each in paths.find_files(out / "_staging")] == [shard]


# --- the lease


def test_two_drivers_do_not_run_at_once(
    scenario: NullScenario, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = bucket / "codes.zarr" / "_staging" / "driver.lock"
    with lease.held_lease(lock), pytest.raises(LockedError, match=r"held by process \d+ on "):
        run(scenario, bucket / "codes.zarr")
    assert not paths.exists(lock)
    paths.write_whole(lock, b'{"host": "elsewhere", "pid": 1}')
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        run(scenario, bucket / "codes.zarr")
    monkeypatch.setattr(lease, "EXPIRED_SECONDS", -1.0)
    with lease.held_lease(lock):
        assert b"elsewhere" not in paths.read_whole(lock)
    assert not paths.exists(lock)


def test_the_lease_of_a_process_that_died_here_is_taken_over(bucket: ObjectPath) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    lock = bucket / "driver.lock"
    paths.write_whole(lock, json.dumps({"host": socket.gethostname(), "pid": child}).encode())
    with lease.held_lease(lock):
        pass


# --- bad input


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://no-such-bucket/codes.zarr", "no such bucket"),
        ("s3://{bucket}", "is a whole bucket"),
        ("s3://{bucket}/used", "has other objects below it"),
        ("hdfs://x/y", "hdfs:// is not read or written"),
        ("s3://{bucket}/a//b", "no name of an object"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    bucket: ObjectPath, out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.write_whole(bucket / "used" / "x", b"")
    words = ["--in", str(tmp_path), "--out", out.format(bucket=bucket.bucket)]
    assert encode.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_store_that_is_not_there_is_named(
    bucket: ObjectPath, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(bucket / "none.zarr")]) == 2
    assert "is not a code store" in capsys.readouterr().err
    assert verify.main([str(bucket / "x"), "--storage-option", "endpoint=http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


# --- reading for training


def stream(store: CodeStore, steps: int = 12) -> list[np.ndarray]:
    dataset = CodeDataset(store, window=2, batch_size=2, every_view=True)
    return [batch["codes"].numpy() for batch in dataset.batches(0, steps)]


def copies(folder: Path) -> list[Path]:
    """The files of a cache but for its locks."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_stream_gives_the_batches_of_the_same_store_on_a_disk(
    scenario: NullScenario, bucket: ObjectPath, tmp_path: Path
) -> None:
    out = bucket / "codes.zarr"
    assert run(scenario, out) == 0
    assert scenario.run(tmp_path / "codes.zarr") == 0
    remote = CodeStore.open(out, cache_dir=tmp_path / "cache")
    local = CodeStore.open(tmp_path / "codes.zarr")
    for ours, theirs in zip(stream(remote), stream(local), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    shards = {path.read_bytes() for path in (tmp_path / "codes.zarr").glob("g*/image/c/*/0/0")}
    assert {path.read_bytes() for path in copies(tmp_path / "cache")} == shards
    for grid in remote.grids:  # what is copied needs no store any more
        for each in paths.find_files(out / f"g{grid}"):
            paths.remove(each.path)
    for ours, theirs in zip(stream(remote), stream(local), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_cache_smaller_than_the_store_stays_within_its_bound(
    scenario: NullScenario, bucket: ObjectPath, tmp_path: Path
) -> None:
    out = bucket / "codes.zarr"
    assert run(scenario, out) == 0
    shard = paths.file_info(out / "g2x2" / "image" / "c" / "0" / "0" / "0")
    assert shard is not None
    remote = CodeStore.open(out, cache_dir=tmp_path, cache_bytes=shard.size * 2)
    assert len(stream(remote, 30)) == 30
    assert 1 <= len(copies(tmp_path)) <= 2
