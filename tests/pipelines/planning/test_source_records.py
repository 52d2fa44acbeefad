"""What archives hold is kept in the store: one that has not changed is not listed again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ops.disk_errors import DiskError
from pipelines.inputs import Fields, members, parse_carry
from pipelines.inputs.listing import Listing, list_input
from pipelines.planning import source_records
from pipelines.planning.source_records import ArchiveLists
from tests.pipelines.inputs.test_archives import PNG, write_table, write_tar


def listed(folder: Path, store: Path | None, labels: str = "field") -> Listing:
    fields = Fields(carry=parse_carry("all"))
    return list_input(folder / "in", labels, fields, store and ArchiveLists(store))


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write_tar(
        tmp_path / "in/1.tar",
        {"a.png": PNG, "a.txt": b"text", "a.cls": b"3", "b.bin": b"", ".c.png": PNG,
         os.fsdecode(b"\xff.png"): PNG},
    )  # fmt: skip
    write_table(tmp_path / "in/2.parquet", [PNG, PNG], label=[1, 2], caption=["x", None])
    cut = write_tar(tmp_path / "in/3.tar", {"d.png": PNG * 200, "e.png": PNG * 200})
    cut.write_bytes(cut.read_bytes()[:3000])
    write_tar(tmp_path / "in/4.tar", {})
    (tmp_path / "store").mkdir()
    return tmp_path


def count_listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the archives that are listed from now on."""
    names: list[str] = []
    real = members.archive_members

    def counted(path: str, *rest: Any) -> Any:
        names.append(os.path.basename(path))
        return real(path, *rest)

    monkeypatch.setattr(members, "archive_members", counted)
    return names


def test_unchanged_archives_are_not_listed_again(
    archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = listed(archives, None)
    assert len(expected.table) == 4
    assert expected.unread == ["3.tar"]
    names = count_listed(monkeypatch)
    store = archives / "store"
    assert listed(archives, store) == expected
    assert sorted(names) == ["1.tar", "2.parquet", "3.tar", "4.tar"]
    names.clear()
    assert listed(archives, store) == expected
    assert names == []
    os.utime(archives / "in/1.tar", (1, 1))  # changed
    write_tar(archives / "in/5.tar", {"f.png": PNG})
    (archives / "in/4.tar").rename(archives / "in/6.tar")
    again = listed(archives, store)
    assert sorted(names) == ["1.tar", "5.tar", "6.tar"]
    assert again == listed(archives, None)
    names.clear()
    assert listed(archives, store, "none") == listed(archives, None, "none")
    assert len(names) == 2 * 5  # other fields were read before


def test_corrupt_lists_are_made_anew(archives: Path) -> None:
    expected, store = listed(archives, None), archives / "store"
    listed(archives, store)
    files = sorted((store / "_sources/archives").iterdir())
    before = [path.read_bytes() for path in files]
    assert len(files) == 4
    for path, data, wrong in zip(
        files, before, (b"", before[1][:-99], before[0], b"PAR1" * 9), strict=True
    ):
        assert wrong != data
        path.write_bytes(wrong)
    assert listed(archives, store) == expected
    assert [path.read_bytes() for path in files] == before


def test_a_full_disk_is_no_defect_of_an_archive(
    archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source_records.paths, "write_whole", fails)
    with pytest.raises(DiskError, match="No space left on device"):
        listed(archives, archives / "store")


def test_errors_of_the_disk_are_not_kept(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def fails(*_: object) -> object:
            raise OSError(5, "Input/output error")

        patch.setattr(members, "archive_members", fails)
        (archives / "in/x.png").write_bytes(PNG)
        found = listed(archives, archives / "store")
        assert len(found.unread) == 4
        assert "Input/output error" in found.skipped[0][1]
    assert listed(archives, archives / "store") == listed(archives, None)
