"""Every image file decodes to the image that viewers show, or raises an error with a reason."""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ops.config import ConfigError
from ops.images import (
    CROPS,
    ImageError,
    Transform,
    decode_image,
    image_grid,
    image_size,
    looks_like_image,
    read_image,
    resize_and_crop,
    to_image,
    to_pixels,
    write_png,
)


def gradient(height: int = 24, width: int = 36) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


IMAGE = Image.fromarray(gradient())


def with_orientation(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(IMAGE, kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000", "GIF", "JPEG"])
def test_each_format_is_decoded(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    data = encoded(IMAGE, kind, **options)
    error = np.abs(decode_image(data).astype(int) - gradient())
    assert error.mean() < {"GIF": 12, "JPEG": 3}.get(kind, 0.5)
    assert image_size(io.BytesIO(data)) == (36, 24)
    assert kind == "PPM" or kind == "BMP" or looks_like_image(data[:12])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a),
    }
    expected = turns[orientation](decode_image(with_orientation(1, kind)))
    data = with_orientation(orientation, kind)
    np.testing.assert_array_equal(decode_image(data), expected)
    assert image_size(io.BytesIO(data)) == (expected.shape[1], expected.shape[0])


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # cyan 0, magenta and yellow full: red
    for kind in ("JPEG", "TIFF"):
        assert np.abs(decode_image(encoded(image, kind)).astype(int) - (255, 0, 0)).max() < 40


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte(kind: str) -> None:
    samples = np.arange(0, 65536, 256 * 8, dtype=np.uint16).reshape(4, 8) + 77
    image = decode_image(encoded(Image.fromarray(samples), kind))
    np.testing.assert_array_equal(image, np.repeat((samples >> 8)[..., None], 3, -1))


def test_sixteen_bit_rgb_keeps_its_high_byte() -> None:
    samples = np.array([[[0, 0x80FF, 0xFFFF], [0x0100, 0x00FF, 0x7FFF]]])
    assert decode_image(png(16, 2, samples)).tolist() == [[[0, 0x80, 0xFF], [1, 0, 0x7F]]]


def half_transparent(mode: str) -> Image.Image:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    if mode == "P":
        image = image.convert("P")
        image.info["transparency"] = image.getpixel((1, 0))
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    options = {"transparency": half_transparent(mode).info["transparency"]} if mode == "P" else {}
    image = decode_image(encoded(half_transparent(mode), "PNG", **options))
    assert image[0, 1].tolist() == [255, 255, 255]
    assert image[0, 0, 1] < 70


def png(bits: int, colour: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples (H, W, channels) of 1, 2, 4, 8 or 16 bits; colour types 0, 2, 4 and 6."""
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, 0)
    rows = samples.reshape(len(samples), -1, 1) >> np.arange(bits)[::-1] & 1  # bits, highest first
    packed = np.packbits(rows.reshape(len(samples), -1).astype(np.uint8), axis=1)
    data = zlib.compress(np.pad(packed, ((0, 0), (1, 0))).tobytes())
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


@pytest.mark.parametrize(
    ("channels", "bits"), [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 8), (3, 16)]
)
def test_a_transparent_colour_is_like_an_alpha_channel(bits: int, channels: int) -> None:
    """Also where another colour has the same high byte, or the same low one."""
    top = 2**bits - 1
    levels = np.array([0, top, top // 3, 0x80, 0x8001, 0x80FF, 0x0180, 0xFF80]) & top
    samples = np.repeat(levels[None, :, None], channels, -1)
    samples[..., 1:] //= 2
    scale = {1: 255, 2: 85, 4: 17, 8: 1, 16: 1}[bits]
    for key in samples[0]:
        data = png(bits, channels - 1, samples, (b"tRNS", struct.pack(f">{channels}H", *key)))
        alpha = (samples != key).any(-1, keepdims=True) * (255 if bits < 16 else 65535)
        layers = np.concatenate([samples * scale, alpha], -1)
        expected = decode_image(png(max(bits, 8), channels + 3, layers))
        np.testing.assert_array_equal(decode_image(data), expected)


def test_palette_with_partial_alpha_is_composited() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 100, 0, 0])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=bytes([255, 51]))
    assert decode_image(data).tolist() == [[[0, 0, 0], [224, 204, 204]]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA"])
def test_grey_and_bilevel_become_rgb(mode: str) -> None:
    image = decode_image(encoded(IMAGE.convert("L").convert(mode)))
    assert image.shape == (24, 36, 3)
    assert (image[..., 0] == image[..., 2]).all()


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.7, 0.95])
def test_a_truncated_file_is_an_error_and_never_grey(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(gradient(200, 300)), kind)
    with pytest.raises(ImageError):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_padded_with_zeros_is_an_error(progressive: bool) -> None:
    data = encoded(Image.fromarray(gradient(200, 300)), "JPEG", progressive=progressive)
    cut = data[: len(data) // 2]
    with pytest.raises(ImageError, match="cut short") as caught:
        decode_image(cut + bytes(len(data) - len(cut)))
    assert caught.value.reason == "truncated"


def test_a_jpeg_with_a_trailer_or_a_thumbnail_is_complete() -> None:
    data = encoded(IMAGE, "JPEG")
    thumbnail = encoded(IMAGE.resize((8, 8)), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = data[:2] + segment + data[2:]
    assert decode_image(with_thumbnail + b"trailer \xff\xda").shape == (24, 36, 3)
    with pytest.raises(ImageError):
        decode_image(with_thumbnail[: len(segment) + len(data) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "unsupported"),
        (encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), "unsupported"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "broken"),
    ],
)
def test_bytes_that_are_not_an_image_raise_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason in (reason, "not an image")


@pytest.mark.parametrize("side", [11_000, 14_000, 19_000])
def test_a_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    data = encoded(Image.new("1", (side, side)), "TIFF", compression="group4")
    for read in (decode_image, lambda data: image_size(io.BytesIO(data))):
        with pytest.raises(ImageError, match="limit") as caught:
            read(data)
        assert caught.value.reason == "too large"


def test_only_pillows_warnings_are_silenced() -> None:
    exif = b"Exif\0\0II*\0" + b"\xff" * 30
    bad_exif = encoded(IMAGE, "JPEG", exif=exif)
    large = encoded(Image.new("1", (10_000, 9_900)), "TIFF", compression="group4")
    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(image_size, map(io.BytesIO, [bad_exif, large] * 20)))
    assert sizes == [(36, 24), (10_000, 9_900)] * 20
    assert decode_image(bad_exif).shape == (24, 36, 3)
    assert not any(f[0] == "ignore" and "PIL" in str(f[3]) for f in warnings.filters)
    with pytest.raises(UserWarning):
        warnings.warn("still an error in tests", stacklevel=1)


def test_extreme_shapes_are_read() -> None:
    for size in ((1, 1), (3000, 1), (1, 3000)):
        data = encoded(Image.new("RGB", size, "red"))
        for crop in CROPS:
            transform = Transform(image_size=16, crop=crop, multiple_of=8)
            target = transform.target_size(*size)
            image = transform.read(data, target).image
            assert image.shape == (*target, 3)
            assert (image == (255, 0, 0)).all()


@given(data=st.binary(max_size=200), cut=st.integers(0, 700), at=st.integers(0, 600))
def test_random_bytes_give_an_image_or_an_image_error(data: bytes, cut: int, at: int) -> None:
    jpeg = encoded(IMAGE, "JPEG")
    for candidate in (data, jpeg[:at] + data + jpeg[at + cut :]):
        try:
            image = decode_image(candidate)
        except ImageError:
            continue
        assert image.ndim == 3


def test_large_jpegs_are_decoded_at_reduced_size_above_min_side() -> None:
    data = encoded(Image.fromarray(gradient(800, 1200)), "JPEG")
    decoded = read_image(data, min_side=200)
    assert decoded.image.shape == (200, 300, 3)
    assert (decoded.width, decoded.height) == (1200, 800)
    assert read_image(data, min_side=201).image.shape == (400, 600, 3)
    full = resize_and_crop(decode_image(data), 100).astype(int)
    assert np.abs(full - resize_and_crop(decoded.image, 100)).mean() < 1.5


def test_a_center_crop_keeps_the_center() -> None:
    image = gradient(24, 36)
    np.testing.assert_array_equal(resize_and_crop(image, 24), image[:, 6:30])
    np.testing.assert_array_equal(resize_and_crop(image, (24, 36)), image)
    halved = resize_and_crop(image, 12)
    boxes = image[:, 6:30].reshape(12, 2, 12, 2, 3).mean((1, 3))
    assert np.abs(halved - boxes).max() < 12


def test_random_crops_depend_on_seed_and_key_only() -> None:
    image = gradient(48, 64)
    crops = [
        resize_and_crop(image, 16, "random", seed=seed, key=key)
        for seed, key in [(0, "a"), (0, "a"), (1, "a"), (0, "b")]
    ]
    assert (crops[0] == crops[1]).all()
    assert (crops[0] != crops[2]).any()
    assert (crops[0] != crops[3]).any()


def test_ten_crops_are_corners_center_and_their_mirrors() -> None:
    image = gradient(18, 36)
    crops = [resize_and_crop(image, 16, "ten", view=view) for view in range(10)]
    np.testing.assert_array_equal(crops[0], image[:16, :16])
    np.testing.assert_array_equal(crops[1], image[:16, 20:])
    np.testing.assert_array_equal(crops[3], image[2:, 20:])
    np.testing.assert_array_equal(crops[4], image[1:17, 10:26])
    for view in range(5):
        np.testing.assert_array_equal(crops[view + 5], crops[view][:, ::-1])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(36, 24), (16, 16)])
def test_reading_a_view_is_decoding_and_then_cutting(mode: str, size: tuple[int, int]) -> None:
    data = encoded(IMAGE.resize(size).convert(mode))
    for crop in ("center", "random", "ten"):
        transform = Transform(image_size=16, crop=crop)
        for view in range(transform.views):
            expected = transform.cut(decode_image(data), (16, 16), view, "key")
            found = transform.read(data, (16, 16), view, "key")
            np.testing.assert_array_equal(found.image, expected)


@pytest.mark.parametrize("crop", ["center", "random", "native"])
def test_flip_both_adds_a_mirrored_view(crop: str) -> None:
    transform = Transform(image_size=16, crop=crop, flip="both", multiple_of=8)
    once = dataclasses.replace(transform, flip="none")
    assert (once.views, transform.views) == (1, 2)
    data, size = encoded(IMAGE), transform.target_size(36, 24)
    plain, mirrored = (transform.read(data, size, view, "key").image for view in range(2))
    np.testing.assert_array_equal(plain, once.read(data, size, 0, "key").image)
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    assert (mirrored != plain).any()


@pytest.mark.parametrize(
    ("width", "height", "target"),
    [(640, 480, (32, 40)), (480, 640, (40, 32)), (100, 100, (32, 32)), (9000, 10, (32, 128))],
)
def test_native_keeps_the_aspect_rounded_to_a_multiple(width, height, target) -> None:
    transform = Transform(image_size=32, crop="native", multiple_of=8)
    assert transform.target_size(width, height) == target


def test_a_native_size_of_an_unreadable_file_is_refused() -> None:
    transform = Transform(image_size=16, crop="native", multiple_of=8)
    with pytest.raises(ImageError, match="could not be read") as caught:
        transform.read(encoded(IMAGE), (8, 8))
    assert caught.value.reason == "changed"


def test_an_invalid_transform_is_refused() -> None:
    with pytest.raises(ConfigError, match="Use 256"):
        Transform(image_size=255, multiple_of=8)
    with pytest.raises(ConfigError, match="crop 'oval'"):
        Transform(crop="oval")
    with pytest.raises(ConfigError, match="flip 'once'"):
        Transform(flip="once")
    with pytest.raises(ConfigError, match="ten includes mirrored views"):
        Transform(crop="ten", flip="both")


def test_to_pixels_and_to_image_are_inverse() -> None:
    images = np.arange(256 * 6, dtype=np.uint8).reshape(2, 16, 16, 3)
    pixels = to_pixels(images)
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (-1, 1)
    np.testing.assert_array_equal(to_image(pixels), images)
    np.testing.assert_array_equal(to_image(to_pixels(images[0]))[0], images[0])
    assert to_image(torch.tensor([-9.0, 9.0, 0.0]).view(1, 3, 1, 1)).tolist() == [[[[0, 255, 128]]]]


def test_a_written_png_decodes_to_the_same_image(tmp_path: Path) -> None:
    write_png(tmp_path / "a" / "b.png", gradient())
    np.testing.assert_array_equal(decode_image((tmp_path / "a/b.png").read_bytes()), gradient())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


@given(count=st.integers(1, 7), columns=st.integers(1, 9), gap=st.integers(0, 3))
def test_a_grid_has_every_image_at_its_position(count: int, columns: int, gap: int) -> None:
    images = np.random.default_rng(count).integers(0, 255, (count, 4, 5, 3), np.uint8)
    grid = image_grid(images, columns, gap)
    columns = min(columns, count)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (4 + gap), column * (5 + gap)
        np.testing.assert_array_equal(grid[top : top + 4, left : left + 5], image)
    assert grid.shape[1] == columns * (5 + gap) - gap
