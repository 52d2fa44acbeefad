"""A PNG written strip by strip decodes to the same image, however it was split."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from ops import png
from ops.png import write_png_strips
from tests.conftest import examples, photograph


def written(path: Path, image: np.ndarray, cuts: list[int]) -> bytes:
    write_png_strips(path, image.shape[1], image.shape[0], np.split(image, sorted(cuts)))
    return path.read_bytes()


def read(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGB"
    return np.array(image)


@given(data=st.data())
def test_any_image_split_anywhere_decodes_to_itself(data: st.DataObject, tmp_path_factory) -> None:
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=9))
    image = data.draw(arrays(np.uint8, (*shape, 3)))
    cuts = data.draw(st.lists(st.integers(0, shape[0]), max_size=3))
    path = tmp_path_factory.getbasetemp() / "any.png"
    np.testing.assert_array_equal(read(written(path, image, cuts)), image)


def test_strip_sizes_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(0, 300, 200)
    whole = written(tmp_path / "whole.png", image, [])
    assert written(tmp_path / "cut.png", image, [1, 64, 128, 299]) == whole
    monkeypatch.setattr(png, "FILTERED_BYTES", 1)  # row by row
    assert written(tmp_path / "rows.png", image, []) == whole


def test_larger_images_are_the_same_file_for_any_strips_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photograph(0, 300, 200)
    single = written(tmp_path / "single.png", image, [])
    monkeypatch.setattr(png, "UNBANDED_BYTES", 0)
    monkeypatch.setattr(png, "BAND_BYTES", 20_000)  # less than a dictionary
    whole = written(tmp_path / "whole.png", image, [])
    np.testing.assert_array_equal(read(whole), image)
    assert len(single) < len(whole) < 1.01 * len(single)
    assert written(tmp_path / "cut.png", image, [1, 64, 128, 299]) == whole
    for threads in (2, 3):
        strips = np.split(image, list(range(0, 300, 7)))
        write_png_strips(tmp_path / "t.png", image.shape[1], image.shape[0], strips, threads)
        assert (tmp_path / "t.png").read_bytes() == whole


@given(data=st.data())
@settings(max_examples=examples(30))
def test_any_image_in_bands_decodes_to_itself(data: st.DataObject, tmp_path_factory) -> None:
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=9))
    image = data.draw(arrays(np.uint8, (*shape, 3)))
    path = tmp_path_factory.getbasetemp() / "bands.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "UNBANDED_BYTES", 0)
        patch.setattr(png, "BAND_BYTES", data.draw(st.integers(1, 99)))
        patch.setattr(png, "DICTIONARY_BYTES", data.draw(st.integers(1, 99)))
        np.testing.assert_array_equal(read(written(path, image, [])), image)


def test_images_up_to_four_megabytes_are_in_one_stream_as_ever(tmp_path: Path) -> None:
    """Folders of samples hold checksums of such files."""
    rows, columns = np.mgrid[:60, :50]
    image = np.stack([rows * columns, rows + columns, rows ^ columns], -1).astype(np.uint8)
    found = hashlib.sha256(written(tmp_path / "a.png", image, [])).hexdigest()
    assert found.startswith("dd58e0b7eb6e3927")


def test_a_photographs_file_is_no_larger_than_pillows(tmp_path: Path) -> None:
    image = photograph(1, 400, 500)
    pillows = io.BytesIO()
    Image.fromarray(image).save(pillows, "PNG")
    assert len(written(tmp_path / "a.png", image, [])) < 1.05 * len(pillows.getvalue())


@pytest.mark.parametrize(
    ("width", "rows"), [(7, [5, 4]), (7, [5, 6]), (8, [5, 5])], ids=["short", "long", "narrow"]
)
def test_strips_that_do_not_fit_leave_nothing(tmp_path: Path, width: int, rows: list[int]) -> None:
    strips = [np.zeros((height, 7, 3), np.uint8) for height in rows]
    with pytest.raises(ValueError, match="image"):
        write_png_strips(tmp_path / "a.png", width, 10, strips)
    assert not list(tmp_path.iterdir())


def test_memory_is_bounded_by_a_strip(tmp_path: Path) -> None:
    strip = np.zeros((64, 4000, 3), np.uint8)
    tracemalloc.start()
    try:
        write_png_strips(tmp_path / "a.png", 4000, 64 * 60, (strip + n for n in range(60)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 60 * 4000 * 3 / 2
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (4000, 3840)
