"""Embedded colour profiles are converted to sRGB, in every format and kind of pixels."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from ops.colour_profiles import to_srgb
from ops.images import decode_image, read_image
from ops.masked_images import decode_masked

LEVELS = np.linspace(0, 1, 1024)
SRGB_CURVE = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)
RED, GREEN, BLUE = (
    (0.43607, 0.22249, 0.01392),
    (0.38515, 0.71687, 0.09708),
    (0.14307, 0.06061, 0.7141),
)
D50 = (0.9642, 1.0, 0.8249)


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 2.4 with these tags."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78),
        b"cprt": b"text\0\0\0\0x\0\0\0",
        b"wtpt": xyz(D50),
        **tags,
    }
    table, body, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I", place + len(body)) + b"lcms" + b"\2\x40\0\0mntr" + space + b"XYZ "
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz(D50)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(values: np.ndarray) -> bytes:
    samples = (values * 65535).round().astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(samples)) + samples.tobytes()


def rgb_profile(red, green, blue) -> bytes:
    curves = {name: curve(SRGB_CURVE) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return icc(b"RGB ", {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue), **curves})


SRGB = rgb_profile(RED, GREEN, BLUE)
SWAPPED = rgb_profile(BLUE, GREEN, RED)  # the first component is blue
LINEAR_GREY = icc(b"GRAY", {b"kTRC": curve(LEVELS)})
CMYK = icc(b"CMYK", {})

COLOURS = np.random.default_rng(0).integers(0, 255, (6, 4, 3), np.uint8)
IMAGE = Image.fromarray(COLOURS).resize((32, 24), Image.Resampling.BICUBIC)
ALPHA = Image.linear_gradient("L").resize(IMAGE.size)


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def file_of(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def jp2_with(data: bytes, profile: bytes) -> bytes:
    """A JPEG 2000 file with a profile in place of the number of a colour space."""
    start = data.index(b"colr") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    box = struct.pack(">I4s", 11 + len(profile), b"colr") + b"\2\0\0" + profile
    header = data.index(b"jp2h") - 4
    size = int.from_bytes(data[header : header + 4], "big") + len(box) - length
    whole = data[:start] + box + data[start + length :]
    return whole[:header] + struct.pack(">I", size) + whole[header + 4 :]


EXACT = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
FILES = {
    "PNG": (IMAGE, "PNG"),
    "PNG with alpha": (with_alpha(IMAGE), "PNG"),
    "PNG with a palette": (IMAGE.quantize(16), "PNG"),
    "JPEG": (IMAGE, "JPEG"),
    "TIFF": (IMAGE, "TIFF"),
    "TIFF with alpha": (with_alpha(IMAGE), "TIFF"),
    "WebP": (IMAGE, "WEBP"),
    "WebP with alpha": (with_alpha(IMAGE), "WEBP"),
    "AVIF": (IMAGE, "AVIF"),
    "JPEG 2000": (IMAGE, "JPEG2000"),
}


@pytest.mark.parametrize("name", FILES)
def test_profiles_are_converted_in_every_format(name: str) -> None:
    image, kind = FILES[name]
    plain = file_of(kind, image, **EXACT.get(kind, {}))
    data = (
        jp2_with(plain, SWAPPED)
        if kind == "JPEG2000"
        else file_of(kind, image, icc_profile=SWAPPED, **EXACT.get(kind, {}))
    )
    found = read_image(data)
    assert found.note is None
    expected = decode_image(plain).astype(int)[..., ::-1]
    assert np.abs(found.image - expected).max() <= 2
    assert np.abs(found.image - expected[..., ::-1]).max() > 50


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles_are_converted(mode: str) -> None:
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (2, 1))
    image = Image.fromarray(grey)
    if mode == "LA":
        image.putalpha(255)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) << 8)
    found = decode_image(file_of("PNG", image, icc_profile=LINEAR_GREY))
    expected = np.interp(grey / 255, SRGB_CURVE, LEVELS) * 255
    assert np.abs(found - expected[..., None]).max() <= 2


def test_linear_colours_are_converted() -> None:
    linear = rgb_profile(RED, GREEN, BLUE).replace(curve(SRGB_CURVE), curve(LEVELS))
    levels = np.arange(0, 256, 4, dtype=np.uint8)
    image = np.stack([levels, levels[::-1], np.roll(levels, 9)], -1)[None]
    found = decode_image(file_of("PNG", Image.fromarray(image), icc_profile=linear))
    expected = np.interp(image / 255, SRGB_CURVE, LEVELS) * 255
    assert np.abs(found - expected).max() <= 2


def test_cmyk_is_converted_by_its_profile() -> None:
    """By a table that says magenta is green."""
    grid = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    ink, black = grid[:, 1], grid[:, 3]
    lab = np.stack([255 - 100 * ink - 155 * black * (1 - ink), 128 - 80 * ink, 128 + 60 * ink], -1)
    identity = np.arange(256, dtype=np.uint8).tobytes()
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + struct.pack(">9i", *np.eye(3, dtype=int).flat)
    table = table.replace(struct.pack(">i", 1), struct.pack(">i", 65536))
    table += identity * 4 + lab.astype(np.uint8).tobytes() + identity * 3
    profile = icc(b"CMYK", {b"A2B0": table, b"A2B1": table}).replace(b"CMYKXYZ ", b"CMYKLab ")
    profile = profile.replace(b"mntr", b"prtr", 1)
    magenta = Image.new("CMYK", (16, 16), (0, 255, 0, 0))
    for kind in ("JPEG", "TIFF"):
        plain = decode_image(file_of(kind, magenta))[8, 8].astype(int)
        assert plain[0] > plain[1] + 100
        found = read_image(file_of(kind, magenta, icc_profile=profile))
        assert found.note is None
        red, green, _ = found.image[8, 8].astype(int)
        assert green > red + 50


def test_srgb_is_recognised_and_changes_nothing() -> None:
    small = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (SRGB, small):
        image = to_srgb(IMAGE, profile).image
        assert image is IMAGE  # not even copied


def test_transparent_pixels_are_composited_after_the_conversion() -> None:
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 0))
    data = file_of("PNG", red, icc_profile=SWAPPED)
    assert np.abs(decode_image(data).astype(int) - [[[0, 0, 255], [255, 255, 255]]]).max() <= 2
    masked = decode_masked(data)
    assert masked.known.tolist() == [[True, False]]
    assert np.abs(masked.image.astype(int) - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize(
    ("profile", "mode", "why"),
    [
        (b"", "RGB", "broken or too large"),
        (b"x" * 500, "RGB", "is for 'xxxx' and not for RGB"),
        (SRGB[:150], "RGB", "broken"),
        (SRGB[:16] + b"RGB " + bytes(300), "RGB", "broken"),
        (CMYK, "CMYK", "broken"),
        (SWAPPED, "L", "is for 'RGB' and not for L"),
        (LINEAR_GREY, "RGB", "is for 'GRAY' and not for RGB"),
        (SRGB + bytes(17 << 20), "RGB", "too large"),
    ],
)
def test_profiles_that_cannot_be_used_leave_the_image_and_a_note(profile, mode, why) -> None:
    image = IMAGE.convert(mode)
    found = to_srgb(image, profile)
    np.testing.assert_array_equal(found.image, image.convert("RGB"))
    assert found.note is not None
    assert why in found.note
    assert found.note.endswith("read as sRGB")


def test_lab_becomes_srgb() -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(IMAGE, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    error = np.abs(decode_image(file_of("TIFF", lab)).astype(int) - np.asarray(IMAGE))
    assert error.mean() < 3  # 8 bits of a and b are coarse
