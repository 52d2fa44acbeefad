"""Grid shapes: from image headers for native crops, from the settings alone for square ones."""

from __future__ import annotations

import importlib
import os
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from ops.images import Transform
from pipelines.inputs.entries import ENTRY_SCHEMA
from pipelines.inputs.listing import list_input
from pipelines.inputs.reading import Entry
from pipelines.planning.grid_shapes import grids_of

NATIVE = Transform(image_size=32, crop="native", multiple_of=8)


def write_image(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height)).save(path)
    return path


def table(*entries: Entry) -> pa.Table:
    return pa.Table.from_pylist([asdict(entry) for entry in entries], ENTRY_SCHEMA)


@pytest.mark.parametrize("crop", ["center", "random", "ten"])
def test_square_crops_have_one_grid_and_read_no_file(crop: str) -> None:
    entries = table(Entry("a", "/nowhere/a", None, 9, "1", None)).take([0, 0])
    grids = grids_of(Transform(image_size=32, crop=crop, multiple_of=8), entries)
    assert grids.to_pylist() == ["4x4", "4x4"]


def test_native_grids_follow_the_headers_in_the_order_of_the_entries(tmp_path: Path) -> None:
    for number in range(40):
        write_image(tmp_path / f"{number:02d}.png", 64, 64 + 16 * (number % 3))
    grids = grids_of(NATIVE, list_input(tmp_path).table)
    assert grids.to_pylist() == (["4x4", "5x4", "6x4"] * 14)[:40]


def test_images_without_a_readable_size_get_the_smallest_grid(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "text.png").write_text("words")
    write_image(tmp_path / "wide.png", 64, 48)
    listing = list_input(tmp_path).table
    (tmp_path / "text.png").unlink()
    os.mkfifo(tmp_path / "text.png")  # a pipe without a writer
    assert grids_of(NATIVE, listing).to_pylist() == ["1x1", "1x1", "1x1", "4x5"]


def test_an_image_inside_a_larger_file_is_found_by_its_offset(tmp_path: Path) -> None:
    images = [write_image(tmp_path / f"{width}.png", width, 64).read_bytes() for width in (64, 96)]
    together = tmp_path / "both"
    together.write_bytes(b"".join(images))
    entries = [
        Entry("a", str(together), 0, len(images[0]), "1", None),
        Entry("b", str(together), len(images[0]), len(images[1]), "1", None),
        Entry("c", str(together), len(images[0]), len(images[1]) + 1, "1", None),
    ]
    assert grids_of(NATIVE, table(*entries)).to_pylist() == ["4x4", "4x6", "1x1"]


def test_reading_many_headers_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("pipelines.inputs.thread_map")
    monkeypatch.setattr(module, "BAR_AFTER", 0.0)
    monkeypatch.setattr(module, "BATCH", 2)
    for number in range(5):
        write_image(tmp_path / f"{number}.png", 64, 64)
    assert grids_of(NATIVE, list_input(tmp_path).table).to_pylist() == ["4x4"] * 5
    shown = capsys.readouterr()
    assert "reading headers" in shown.err
    assert "5/5" in shown.err
    assert not shown.out
