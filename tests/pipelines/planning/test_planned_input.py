"""An input of which nothing has changed is neither listed nor compared with the plan again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.planning import planned_input
from pipelines.planning.planned_input import planned_input_path
from tests.crashes import null_encode
from tests.crashes.null_encode import encode_files, make_tokenizer
from tests.encode_run import everything


class Runs:
    """Runs of the encode command on a folder of two tar files."""

    def __init__(self, folder: Path) -> None:
        self.out, self.tars = folder / "codes.zarr", folder / "tars"
        self.tokenizer = make_tokenizer(folder / "tokenizer")
        self.files: dict[str, list[Path]] = {}
        self.listings = 0
        self.tars.mkdir()
        self.add("a")
        self.add("b")

    def add(self, name: str) -> None:
        (self.tars / f"{name}.tar").write_bytes(name.encode())
        for number in range(3):
            image = self.tars.parent / f"{name}{number}.png"
            image.write_bytes(image.name.encode())
            self.files[f"{name}.tar/{number}.png"] = [image]

    def __call__(self, **flags: Any) -> int:
        """Encode; how often the input was listed for it."""
        before = self.listings
        flags = {"in_": (self.tars,), **flags}
        assert encode_files(self.out, self.tokenizer, self.files, **flags) == 0
        return self.listings - before


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(planned_input, "KEPT_FROM", 0)
    runs, list_files = Runs(tmp_path), null_encode.list_files

    def counted(files: dict[str, list[Path]]) -> Any:
        runs.listings += 1
        return list_files(files)

    monkeypatch.setattr(null_encode, "list_files", counted)
    return runs


def test_an_input_that_has_not_changed_is_not_listed(runs: Runs) -> None:
    assert runs() == 1
    before = everything(runs.out)
    assert runs() == 0
    assert everything(runs.out) == before
    next((runs.out / "_index").glob("*/1.parquet")).unlink()
    assert runs() == 0  # what is planned and not there is encoded all the same
    assert everything(runs.out).keys() == before.keys()


def test_an_input_that_has_changed_is_listed(runs: Runs) -> None:
    runs()
    os.utime(runs.tars / "a.tar", ns=(7, 7))
    assert runs() == 1
    assert runs() == 0
    runs.add("c")
    assert runs() == 1
    assert len(list((runs.out / "_plan").iterdir())) == 2
    assert runs() == 0


def test_flags_that_compare_images_with_the_plan_list_them(runs: Runs) -> None:
    runs()
    for flags in ({"prune": True}, {"by_content": True}, {"retry_failed": True}):
        assert runs(**flags) == 1
    assert runs(min_size=1) == 1  # another selection
    assert runs(in_=(runs.tars / "a.tar", runs.tars / "b.tar")) == 1  # other keys


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"asked": 1}', None])
def test_a_record_that_is_not_intact_counts_for_nothing(runs: Runs, content: bytes | None) -> None:
    runs()
    path = planned_input_path(runs.out)
    if content is None:  # of a plan that has been restored from an older copy
        content = json.dumps({**json.loads(path.read_bytes()), "parts": 2}).encode()
    path.write_bytes(content)
    assert runs() == 1
    assert runs() == 0


def test_a_small_input_has_no_record(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs()
    monkeypatch.setattr(planned_input, "KEPT_FROM", 7)
    assert runs(prune=True) == 1
    assert not planned_input_path(runs.out).exists()
    assert runs() == 1
