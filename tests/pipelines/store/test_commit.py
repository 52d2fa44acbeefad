"""Committing a task: the first attempt wins, and no later one changes anything outside staging,
whatever the file system reports."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ops.disk import Disk
from ops.disk_errors import DiskError
from pipelines.store import CodeStore, StoreError, commit_task
from pipelines.store.commit import publish_task, read_part
from pipelines.store.layout import index_path, shard_path, staging_path
from pipelines.store.recovery import empty_staging
from tests.conftest import make_store
from tests.encode_run import everything

GRID = "4x6"
UNLINKED = [
    errno.EIO,
    errno.ENOSPC,
    errno.ESTALE,
]  # not that there are no links: another way is taken


def some_codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16, (21, 4, 6)).astype("<u2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "codes.zarr", some_codes())


@pytest.fixture
def unfinished(path: Path) -> tuple[Path, pa.Table]:
    """A store whose task 1 is not committed yet, and that task's index lines."""
    index, _ = read_part(path, GRID, 1)
    index_path(path, GRID, 1).unlink()
    shutil.rmtree(shard_path(path, GRID, "image", 1).parents[1])
    return path, index


def commit(path: Path, index: pa.Table, shift: int = 0) -> bool:
    codes = (some_codes()[8:16] + shift).astype("<u2")
    return commit_task(path, GRID, 1, 8, {"image": codes}, index)


def outside_staging(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(path).items() if "_staging" not in name}


class DisturbedDisk(Disk):
    """Calls a function instead of linking."""

    def __init__(self, linking: Callable[[Path, Path], None]) -> None:
        self.linking = linking

    def link(self, source: Path, target: Path) -> None:
        self.linking(source, target)


@pytest.mark.parametrize("reported", [errno.EEXIST, *UNLINKED])
def test_a_link_reported_as_failed_commits(
    unfinished, monkeypatch: pytest.MonkeyPatch, reported: int
) -> None:
    path, index = unfinished

    def link_and_lie(source: Path, target: Path) -> None:
        os.link(source, target)
        raise OSError(reported, os.strerror(reported))

    monkeypatch.setattr("ops.disk.disk", DisturbedDisk(link_and_lie))
    assert commit(path, index)
    np.testing.assert_array_equal(
        CodeStore.open(path).read(GRID, np.arange(8, 16)), some_codes()[8:16]
    )
    assert list(staging_path(path).iterdir()) == []


@pytest.mark.parametrize("reported", UNLINKED)
def test_a_failed_link_commits_nothing_and_can_be_retried(
    unfinished, monkeypatch: pytest.MonkeyPatch, reported: int
) -> None:
    path, index = unfinished
    before = outside_staging(path)

    def fail(source: Path, target: Path) -> None:
        raise OSError(reported, os.strerror(reported))

    with monkeypatch.context() as patched:
        patched.setattr("ops.disk.disk", DisturbedDisk(fail))
        with pytest.raises((OSError, DiskError), match=os.strerror(reported)):
            commit(path, index)
    assert outside_staging(path) == before
    assert commit(path, index)
    assert len(CodeStore.open(path)) == 21


@pytest.mark.parametrize("reported", [None, errno.EIO])
def test_an_attempt_overtaken_by_another_changes_nothing(
    unfinished, monkeypatch: pytest.MonkeyPatch, reported: int | None
) -> None:
    path, index = unfinished
    seen: list[dict[str, bytes]] = []

    def be_overtaken(source: Path, target: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("ops.disk.disk", Disk())
            assert commit(path, index)
        seen.append(outside_staging(path))
        if reported:
            raise OSError(reported, os.strerror(reported))
        os.link(source, target)

    monkeypatch.setattr("ops.disk.disk", DisturbedDisk(be_overtaken))
    assert not commit(path, index, shift=1)
    assert [outside_staging(path)] == seen
    assert list(staging_path(path).iterdir()) == []
    np.testing.assert_array_equal(
        CodeStore.open(path).read(GRID, np.arange(8, 16)), some_codes()[8:16]
    )


@pytest.mark.parametrize("shift", [0, 1])
def test_a_late_attempt_changes_nothing(path: Path, shift: int) -> None:
    before = everything(path)
    index, _ = read_part(path, GRID, 1)
    assert commit(path, index, shift) is (shift == 0)
    assert everything(path) == before


def test_other_index_lines_of_the_same_codes_change_nothing(path: Path) -> None:
    before = everything(path)
    index, _ = read_part(path, GRID, 1)
    place = index.schema.get_field_index("width")
    assert not commit(path, index.set_column(place, "width", pa.array([7] * 8, pa.int32())))
    assert outside_staging(path) == before
    empty_staging(path)
    assert len(CodeStore.open(path)) == 21


@pytest.mark.parametrize("operation", ["create", "fsync", "link", "replace"])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_zombie_that_finds_staging_empty_fails_cleanly(
    unfinished, monkeypatch: pytest.MonkeyPatch, operation: str, shift: int
) -> None:
    path, index = unfinished
    after: list[dict[str, bytes]] = []

    class SleepingDisk(Disk):
        """Lets another attempt finish the store at the first operation of a kind."""

    def sleep(self: Disk, *paths: Path) -> object:
        if not after:
            with monkeypatch.context() as patched:
                patched.setattr("ops.disk.disk", Disk())
                assert commit(path, index)
                empty_staging(path)
            after.append(outside_staging(path))
        return getattr(super(SleepingDisk, self), operation)(*paths)

    setattr(SleepingDisk, operation, sleep)
    monkeypatch.setattr("ops.disk.disk", SleepingDisk())
    outcome: object
    try:
        outcome = commit(path, index, shift)
    except StoreError as error:
        outcome = str(error)
    assert outcome is (shift == 0) or "emptied by another run" in str(outcome)
    assert [outside_staging(path)] == after
    assert len(CodeStore.open(path)) == 21


def test_a_removed_store_is_not_made_again(unfinished) -> None:
    path, index = unfinished
    shutil.rmtree(path)
    with pytest.raises(StoreError, match="emptied by another run"):
        commit(path, index)
    assert not path.exists()


def test_a_full_disk_leaves_nothing_half_written(
    unfinished, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, index = unfinished
    before = everything(path)

    class FullDisk(Disk):
        def fsync(self, path: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("ops.disk.disk", FullDisk())
        with pytest.raises(OSError, match="No space"):
            commit(path, index)
    assert everything(path) == before


def test_files_are_flushed_before_those_that_depend_on_them(
    unfinished, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, index = unfinished
    done: list[tuple[str, str]] = []

    class ListingDisk(Disk):
        def fsync(self, path: Path) -> None:
            done.append(("fsync", path.name.split(".")[0].split("-")[0]))
            super().fsync(path)

        def link(self, source: Path, target: Path) -> None:
            done.append(("link", "part"))
            super().link(source, target)

        def replace(self, source: Path, target: Path) -> None:
            done.append(("replace", "staged" if target.parent == staging_path(path) else "shard"))
            super().replace(source, target)

    monkeypatch.setattr("ops.disk.disk", ListingDisk())
    shutil.rmtree(path / "_index")
    shutil.rmtree(path / f"g{GRID}")
    commit(path, index)
    linked = done.index(("link", "part"))
    published = done.index(("replace", "shard"))
    staged = done.index(("replace", "staged"))
    flushed = {
        "shard": done.index(("fsync", GRID)),
        "staging": done.index(("fsync", "_staging"), staged),
        "part": done.index(("fsync", GRID), linked),
        "index": done.index(("fsync", "_index"), linked),
    }
    assert flushed["shard"] < staged < flushed["staging"] < linked
    assert linked < flushed["part"] < flushed["index"] < published
    at_last = [name for what, name in done[published:] if what == "fsync"]
    assert at_last == ["0", "1", "c", "image", f"g{GRID}", "codes"]


def test_a_shard_under_neither_path_is_an_error_with_a_remedy(path: Path) -> None:
    shard_path(path, GRID, "image", 1).unlink()
    part = index_path(path, GRID, 1)
    with pytest.raises(StoreError, match=f"Remove {part} and run encode again"):
        publish_task(path, GRID, 1)
