import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ops.images import ImageError, decode_image
from ops.masked_images import decode_masked, known_cells, resize_masked
from tests.conftest import examples


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_hole(height: int, width: int, hole: tuple[slice, slice]) -> tuple[np.ndarray, bytes]:
    """Random colours, and a PNG file of them that is transparent in the hole."""
    colours = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    colours[..., 3] = 255
    colours[(*hole, 3)] = 0
    return colours[..., :3], png(Image.fromarray(colours))


def test_transparent_pixels_are_unknown_and_have_the_mean_of_the_known():
    hole = slice(2, 5), slice(1, 4)
    colours, data = with_hole(8, 6, hole)
    image, known = decode_masked(data)
    assert not known[hole].any()
    assert known.sum() == 8 * 6 - 9
    np.testing.assert_array_equal(image[known], colours[known])
    np.testing.assert_allclose(image[hole].reshape(-1, 3), [colours[known].mean(0)] * 9, atol=0.5)


def test_all_pixels_of_an_opaque_image_are_known():
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = png(Image.fromarray(colours))
    image, known = decode_masked(data)
    assert known.all()
    np.testing.assert_array_equal(image, decode_image(data))


def test_exif_orientation_is_applied_to_holes():
    upright, _ = with_hole(8, 6, (slice(0, 2), slice(0, 6)))
    layers = np.dstack([upright, np.full((8, 6), 255, np.uint8)])
    layers[:2, :, 3] = 0  # a hole at the top of the upright image
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise
    data = png(Image.fromarray(np.rot90(layers)), exif=exif)
    image, known = decode_masked(data)
    assert not known[:2].any()
    assert known[2:].all()
    np.testing.assert_array_equal(image[2:], upright[2:])


def test_bytes_that_are_not_an_image_are_refused():
    with pytest.raises(ImageError):
        decode_masked(b"text")


def test_a_resized_pixel_is_known_only_if_all_its_sources_are():
    _, data = with_hole(16, 16, (slice(0, 5), slice(0, 16)))
    known = resize_masked(decode_masked(data), (8, 8)).known
    np.testing.assert_array_equal(known, np.arange(8)[:, None] > 2 + np.zeros((1, 8)))


@settings(max_examples=examples(40))
@given(
    height=st.integers(1, 13), width=st.integers(1, 13), factor=st.integers(1, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_cell_is_known_if_it_and_its_neighbours_are(height, width, factor, seed):
    known = np.random.default_rng(seed).random((height, width)) < 0.97
    rows, columns = -(-height // factor), -(-width // factor)

    def whole(row: int, column: int) -> bool:
        part = known[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        return bool(part.all())

    expected = [
        [
            all(
                whole(r, c)
                for r in range(max(0, row - 1), min(rows, row + 2))
                for c in range(max(0, column - 1), min(columns, column + 2))
            )
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    assert known_cells(known, factor).tolist() == expected
