"""JPEG on a device: the code that a GPU runs, here on a CPU with libjpeg for nvJPEG."""

from __future__ import annotations

import io
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image, ImageCms

from ops.device_jpeg import Frame, JpegDecoder, plain_frame, resized
from ops.images import ImageError, Transform
from ops.views import Part

CPU = torch.device("cpu")


def smooth(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(40, 215, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def other_format() -> bytes:
    buffer = io.BytesIO()
    smooth(40, 30).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_plain_colour_jpeg_is_decoded_on_the_device() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"exif": oriented(1)}):
        assert plain_frame(jpeg(smooth(40, 30), **options)) == Frame(40, 30)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        other_format(),
        jpeg(smooth(40, 30).convert("L")),
        jpeg(smooth(40, 30).convert("CMYK")),
        jpeg(smooth(40, 30), keep_rgb=True),
        jpeg(smooth(40, 30), exif=oriented(6)),
        jpeg(smooth(40, 30), exif=b"Exif\0\0MM\0*broken"),
        jpeg(smooth(40, 30), icc_profile=ImageCms.ImageCmsProfile(
            ImageCms.createProfile("sRGB")).tobytes()),
        jpeg(smooth(40, 30))[:-2],
        jpeg(smooth(40, 30)).replace(b"\xff\xc0", b"\xff\xc1"),
        jpeg(smooth(40, 30))[:30],
    ],
)  # fmt: skip
def test_every_other_file_is_read_as_ever(data: bytes) -> None:
    assert plain_frame(data) is None
    transform = Transform(image_size=16)
    results = []
    for read in (transform.read, JpegDecoder(transform, CPU).read):
        try:
            results.append(read(data, (16, 16)).image.tolist())
        except ImageError as error:
            results.append((error.reason, str(error)))
    assert results[0] == results[1]


@hypothesis.given(data=st.binary(max_size=80))
def test_any_bytes_are_a_plain_jpeg_or_not(data: bytes) -> None:
    assert plain_frame(b"\xff\xd8\xff" + data) is None


@pytest.mark.parametrize("crop", ["center", "random", "ten"])
@pytest.mark.parametrize("flip", ["none", "both"])
def test_views_are_those_of_the_cpu_up_to_rounding(crop: str, flip: str) -> None:
    if crop == "ten" and flip == "both":
        return
    transform = Transform(image_size=32, crop=crop, flip=flip)
    data, decoder = jpeg(smooth(100, 60)), JpegDecoder(transform, CPU)
    for view in range(transform.views):
        found = decoder.read(data, (32, 32), view, "key")
        expected = transform.read(data, (32, 32), view, "key")
        assert (found.width, found.height, found.note) == (100, 60, None)
        difference = found.image.astype(int) - expected.image
        assert abs(difference).max() <= 3
        assert abs(difference).mean() < 0.5


@hypothesis.given(
    count=st.integers(8, 60), out=st.integers(4, 40), edges=st.tuples(st.floats(0, 0.4),
    st.floats(0.6, 1))
)  # fmt: skip
def test_one_pass_of_resizing_is_pillows_bit_for_bit(
    count: int, out: int, edges: tuple[float, float]
) -> None:
    raster = np.random.default_rng(count).integers(0, 256, (7, count, 3), np.uint8)
    low, high = (count * edge for edge in edges)
    image = torch.from_numpy(raster).permute(2, 0, 1)
    across = resized(image, (7, out), Part(low, 0, high, 7)).permute(1, 2, 0).numpy()
    expected = Image.fromarray(raster).resize((out, 7), Image.BICUBIC, box=(low, 0, high, 7))
    np.testing.assert_array_equal(across, np.asarray(expected))
    turned = raster.transpose(1, 0, 2).copy()
    down = resized(image.transpose(1, 2), (out, 7), Part(0, low, 7, high)).permute(1, 2, 0).numpy()
    expected = Image.fromarray(turned).resize((7, out), Image.BICUBIC, box=(0, low, 7, high))
    np.testing.assert_array_equal(down, np.asarray(expected))


def test_what_the_device_finds_corrupt_is_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    data, transform = jpeg(smooth(40, 30)), Transform(image_size=16)
    decoder = JpegDecoder(transform, CPU)

    def failing(error: RuntimeError) -> None:
        def decode(*_: Any) -> torch.Tensor:
            raise error

        monkeypatch.setattr(torch.ops.image, "decode_jpeg", decode)

    failing(RuntimeError("nvjpegDecode failed: 2"))
    expected = transform.read(data, (16, 16)).image
    np.testing.assert_array_equal(decoder.read(data, (16, 16)).image, expected)
    failing(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        decoder.read(data, (16, 16))
