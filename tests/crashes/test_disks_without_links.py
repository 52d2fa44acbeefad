"""Disks without hard links: parts are created exclusively, and those that a kill cut short are made
again."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from ops.files import create_without_link, link_once, write_temporary
from tests.crashes.disk_doubles import LinklessDisk, Step, installed
from tests.crashes.scenarios import Scenario


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_is_created_once_and_later_ones_change_nothing(error: int, tmp_path: Path) -> None:
    path = tmp_path / "part"
    with installed(LinklessDisk(tmp_path, error=error)):
        assert link_once(write_temporary(path, b"first"), path)
        assert link_once(write_temporary(path, b"first"), path)
        assert not link_once(write_temporary(path, b"other"), path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_replaced_and_a_late_one_writes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.files.UNFINISHED_SECONDS", 0.0)
    path = tmp_path / "part"
    with open(path, "xb") as late:
        late.write(b"fir")
        late.flush()
        create_without_link(b"first", path)
        late.write(b"and more")
    assert path.read_bytes() == b"first"


def test_encode_makes_the_same_store(fresh: Scenario, tmp_path: Path) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    with installed(LinklessDisk(out)):
        assert fresh.run_here(out) == 0
    assert not fresh.differing(out)


@pytest.mark.parametrize("name", ["create part", "create plan part"])
def test_encode_killed_while_a_part_is_written_resumes_to_the_same_store(
    fresh: Scenario, name: str, tmp_path: Path
) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    killing = LinklessDisk(out, Step(name), "during")
    assert fresh.run(out, killing) == -signal.SIGKILL
    parts = [*out.glob("_plan/*.parquet"), *out.glob("_index/*/*.parquet")]
    assert any(not part.read_bytes().endswith(b"PAR1") for part in parts)
    assert fresh.run(out, LinklessDisk(out)) == 0
    assert not fresh.differing(out)
