"""The state of an input changes with its files, and is unknown where it says too little."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.inputs import Fields, input_state
from pipelines.inputs import input_state as module_function


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.tar", "b/c.tar", "b/d.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"12345")
    return tmp_path / "in"


def state(*inputs: Path) -> str | None:
    return input_state(inputs, Fields())


def written_again(folder: Path) -> None:
    os.utime(folder / "b/c.tar", ns=(5, 5))


def longer(folder: Path) -> None:
    before = (folder / "a.tar").stat().st_mtime_ns
    (folder / "a.tar").write_bytes(b"123456")
    os.utime(folder / "a.tar", ns=(before, before))


@pytest.mark.parametrize(
    "change",
    [
        written_again,
        longer,
        lambda folder: (folder / "b/e.png").touch(),
        lambda folder: (folder / "b/d.jpg").unlink(),
        lambda folder: (folder / "a.tar").rename(folder / "A.tar"),
    ],
)
def test_what_is_added_removed_or_changed_gives_another_state(
    folder: Path, change: Callable[[Path], object]
) -> None:
    before = state(folder)
    assert before is not None
    assert state(folder) == before
    change(folder)
    assert state(folder) != before


def test_files_and_patterns_have_states_of_their_own(folder: Path) -> None:
    states = [
        state(folder), state(folder / "a.tar"), state(folder / "*.tar"),
        state(folder / "a.tar", folder / "b/c.tar"),
    ]  # fmt: skip
    assert len({*states}) == 4
    assert None not in states


def test_what_files_alone_do_not_tell_has_no_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state(folder / "b/d.jpg") is None
    (folder / "list.csv").write_text("file\na.jpg\n")
    assert state(folder / "list.csv") is None
    assert state(folder / "missing") is None
    (folder / "linked").symlink_to(folder / "b")
    assert state(folder) is None
    (folder / "linked").unlink()
    monkeypatch.setitem(module_function.__globals__, "MAX_FILES", 3)
    assert state(folder) is None
