"""The export command: what it leaves out, run again, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.store import CodeStore, shard_path, write_tombstones
from tests.exported_store import GRID
from tests.pipelines.exporting.conftest import everything, run_export

#: One whose files are renamed, and one that writes in place.
OWN = ["webdataset", "images"]


@pytest.fixture
def copied(store: Path, tmp_path: Path) -> Path:
    """A store that may be changed."""
    shutil.copytree(store, tmp_path / "copied.zarr")
    return tmp_path / "copied.zarr"


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line


def test_failed_replaced_and_removed_rows_are_counted(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_export(store, tmp_path, "npy") == 0
    (line,) = lines_of(capsys)
    assert line == (
        f"{tmp_path}: 3 of 3 shards exported; 19 rows in all, left out 3: 1 broken, "
        "2 replaced or removed"
    )


@pytest.mark.parametrize("to", OWN)
def test_running_again_changes_nothing(
    store: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_export(store, tmp_path, to) == 0
    before = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file()}
    lines_of(capsys)
    assert run_export(store, tmp_path, to) == 0
    assert "nothing left to do; 19 rows in all" in lines_of(capsys)[0]
    after = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file()}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()
    }


@pytest.mark.parametrize("to", OWN)
def test_a_file_that_is_gone_is_made_again(store: Path, tmp_path: Path, to: str) -> None:
    assert run_export(store, tmp_path, to) == 0
    before = everything(tmp_path)
    for path in sorted(tmp_path.rglob(f"{GRID}-00001*"))[-1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_export(store, tmp_path, to) == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("to", OWN)
def test_a_changed_store_is_exported_as_from_the_start(
    copied: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 12 is removed: its shard alone is written again, without a file of it being left."""
    assert run_export(copied, tmp_path / "out", to) == 0
    before = {path: path.stat().st_ino for path in (tmp_path / "out").glob(f"{GRID}-0000[02].*")}
    write_tombstones(copied, CodeStore.open(copied).index.slice(12, 1))
    lines_of(capsys)
    assert run_export(copied, tmp_path / "out", to) == 0
    assert "1 of 3 shards exported; 18 rows in all" in lines_of(capsys)[0]
    assert {path: path.stat().st_ino for path in before} == before
    assert run_export(copied, tmp_path / "anew", to) == 0
    assert everything(tmp_path / "out") == everything(tmp_path / "anew")


def test_a_shard_without_current_rows_makes_no_file(copied: Path, tmp_path: Path) -> None:
    write_tombstones(copied, CodeStore.open(copied).index.slice(8, 8))
    assert run_export(copied, tmp_path / "out", "webdataset") == 0
    names = [path.name for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert names == [f"{GRID}-00000.tar", f"{GRID}-00002.tar"]


def test_corrupt_rows_are_not_exported(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One code is another valid one, which only the row's checksum shows."""
    path = shard_path(copied, GRID, "image", 1)
    codes = np.memmap(path, "<u2", "r+", shape=(8, 4, 5))
    codes[4, 2, 2] = (codes[4, 2, 2] + 1) % 16
    codes.flush()
    assert run_export(copied, tmp_path / "out", "npy") == 2
    assert "rows differ from their checksums. Run verify." in error_of(capsys)
    assert not list((tmp_path / "out").glob(f"{GRID}-00001*"))


def test_a_folder_of_another_export_is_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_export(store, tmp_path, "npy") == 0
    before = everything(tmp_path)
    assert run_export(store, tmp_path, "parquet") == 2
    assert "to was 'npy', is 'parquet'. Name another --out." in error_of(capsys)
    (tmp_path / "export.json").write_text("{}")
    assert run_export(store, tmp_path, "npy") == 2
    assert "cannot be read" in error_of(capsys)
    before.pop("export.json")
    assert {name: data for name, data in everything(tmp_path).items() if name in before} == before


def test_a_folder_with_other_files_is_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run_export(store, tmp_path, "npy") == 2
    assert "thesis.tex is in the way" in error_of(capsys)
    assert run_export(store, tmp_path / "thesis.tex", "npy") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--to", "tfrecord"], "No format 'tfrecord' for --to; there are webdataset, parquet"),
        (["--address", "auto"], "--address needs --workers"),
    ],
)
def test_wrong_flags_are_one_line(
    store: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_export(store, tmp_path / "out", "npy", *more) == 2
    assert said in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_what_is_no_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_export(tmp_path, tmp_path / "out", "npy") == 2
    assert "is not a code store" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_record_that_was_changed_counts_for_nothing(store: Path, tmp_path: Path) -> None:
    assert run_export(store, tmp_path, "npy") == 0
    before = everything(tmp_path)
    records = sorted((tmp_path / "_export").glob("*.json"))
    records[0].write_text("[]")
    records[1].write_text(records[1].read_text().replace(f"{GRID}-00001.", "../escape."))
    records[2].write_bytes(b"\xff")
    assert run_export(store, tmp_path, "npy") == 0
    assert everything(tmp_path) == before


@pytest.mark.ray
def test_two_workers_write_the_same_bytes(store: Path, tmp_path: Path, ray_local: None) -> None:
    assert run_export(store, tmp_path / "one", "webdataset") == 0
    assert run_export(store, tmp_path / "two", "webdataset", "--workers", 2) == 0
    assert everything(tmp_path / "two") == everything(tmp_path / "one")
