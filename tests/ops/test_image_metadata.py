"""Metadata costs no image: whatever a file holds besides its pixels, these are read."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from ops.images import ImageError, decode_image, image_size, read_image
from tests.conftest import examples

SMALL = np.random.default_rng(0).integers(0, 255, (6, 4, 3), np.uint8)
IMAGE = Image.fromarray(SMALL).resize((32, 48), Image.Resampling.BICUBIC)
EXIF_SIDEWAYS = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
EXIF_UPRIGHT = EXIF_SIDEWAYS.replace(b"\6", b"\1")
XMP_SIDEWAYS = b'<x:xmpmeta tiff:Orientation="6"/>'


def file_of(kind: str, image: Image.Image = IMAGE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


PNG = file_of("PNG")
JPEG = file_of("JPEG", quality=95)
WEBP = file_of("WEBP", lossless=True)
AVIF = file_of("AVIF", quality=95)


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right)


def png_with(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def png_ending_with(*chunks: bytes) -> bytes:
    return PNG[:-12] + b"".join(chunks) + PNG[-12:]


def segment(marker: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2 if length is None else length) + body


def jpeg_with(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def tiff_with(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A TIFF of IMAGE with one more tag, whose value is inline or an offset."""
    data = IMAGE.tobytes()
    width, height = IMAGE.size
    table = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 0), (259, 3, 1, 1)]
    table += [(262, 3, 1, 2), (273, 4, 1, 0), (277, 3, 1, 3), (278, 3, 1, height)]
    table += [(279, 4, 1, len(data)), (tag, kind, count, int.from_bytes(value, "little"))]
    bits = 8 + 2 + 12 * len(table) + 4
    places = {258: bits, 273: bits + 6}
    entries = [struct.pack("<HHII", t, k, c, places.get(t, v)) for t, k, c, v in sorted(table)]
    directory = struct.pack("<H", len(table)) + b"".join(entries) + b"\0" * 4
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<3H", 8, 8, 8) + data


ANCILLARY = (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tIME", b"bKGD", b"eXIf", b"iCCP", b"tEXt")
ANIMATION = (b"acTL", b"fcTL", b"fdAT")
MIB_AND_MORE = b"x" * 1_500_000
#: Names of text that Pillow keeps next to what it knows of the pixels.
KEYWORDS = (b"transparency", b"interlace", b"bbox", b"exif", b"icc_profile", b"default_image")

PNGS = {
    "long text": png_with(chunk(b"tEXt", b"a\0" + MIB_AND_MORE)),
    "packed text": png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(MIB_AND_MORE))),
    "late text": png_ending_with(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(MIB_AND_MORE))),
    "much text": png_with(*[chunk(b"tEXt", b"a\0" + MIB_AND_MORE[:950_000])] * 75),
    "large profile": png_with(chunk(b"iCCP", b"p\0\0" + zlib.compress(MIB_AND_MORE))),
    "unknown packing": png_with(chunk(b"iCCP", b"p\0\7" + zlib.compress(b"x"))),
    "cut within text": png_ending_with(chunk(b"tEXt", b"a\0text"))[:-20],
    **{f"{kind!r} checksum": png_with(chunk(kind, b"\1" * 9, 7)) for kind in ANCILLARY},
    **{f"{kind!r} empty": png_with(chunk(kind, b"")) for kind in (*ANCILLARY, *ANIMATION)},
    **{f"late {kind!r}": png_ending_with(chunk(kind, b"\1", 7)) for kind in ANCILLARY},
    **{f"{word!r} as text": png_with(chunk(b"tEXt", word + b"\0text")) for word in KEYWORDS},
    "animation": file_of("PNG", save_all=True, append_images=[IMAGE.rotate(180)]),
}
JPEGS = {
    "short JFIF": jpeg_with(segment(0xE0, b"JFIF\0\1")),
    "short Adobe": jpeg_with(segment(0xEE, b"Adobe")),
    "broken EXIF": jpeg_with(segment(0xE1, b"Exif\0\0II*\0\xf0\xf0\xf0")),
    "much EXIF": jpeg_with(*[segment(0xE1, b"Exif\0\0" + b"M" * 65_000)] * 40),
    "broken index of images": jpeg_with(segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\0ab")),
    "several images": file_of("MPO", quality=95, save_all=True, append_images=[IMAGE.rotate(9)]),
    "broken Photoshop": jpeg_with(segment(0xED, b"Photoshop 3.0\x008BIM")),
    "part of a profile": jpeg_with(*[segment(0xE2, b"ICC_PROFILE\0\1\3" + b"x" * 99)] * 2),
    "short profile": jpeg_with(segment(0xE2, b"ICC_PROFILE\0")),
    **{f"APP{n} too short": jpeg_with(segment(0xE0 + n, b"abcd" * 9, 10)) for n in range(16)},
    **{f"APP{n} of no length": jpeg_with(segment(0xE0 + n, b"abc", 0)) for n in range(16)},
}
META_WEBP = file_of("WEBP", lossless=True, exif=b"Exif\0\0x", icc_profile=b"x" * 99, xmp=b"<x")
OTHERS = {
    "WebP": (META_WEBP, WEBP),
    "WebP cut within EXIF": (META_WEBP[: META_WEBP.index(b"EXIF") + 9], WEBP),
    "WebP with a long XMP": (META_WEBP[:-6] + b"\xff\xff\xff\0<x", WEBP),
    "AVIF with broken EXIF": (
        file_of("AVIF", quality=95, exif=b"Exif\0\0" + EXIF_UPRIGHT).replace(b"II*\0", b"junk"),
        AVIF,
    ),
    **{
        f"TIFF tag {tag} of type {kind}": (tiff_with(tag, kind, count, b"\xff\xff\xff\xff"), PNG)
        for tag in (254, 270, 274, 282, 305, 700, 34665, 34675, 34853, 50706)
        for kind, count in ((2, 9), (4, 1), (5, 1), (7, 2**31), (13, 1), (99, 1))
    },
}
CASES = (
    {f"PNG: {name}": (data, PNG) for name, data in PNGS.items()}
    | {f"JPEG: {name}": (data, JPEG) for name, data in JPEGS.items()}
    | OTHERS
)


@pytest.mark.parametrize("name", CASES)
def test_metadata_costs_no_image(name: str) -> None:
    data, plain = CASES[name]
    np.testing.assert_array_equal(decode_image(data), decode_image(plain))
    assert image_size(io.BytesIO(data)) == IMAGE.size


@settings(max_examples=examples(30))
@given(junk=st.binary(max_size=60), marker=st.sampled_from([*range(0xE0, 0xF0), 0xFE]))
def test_any_bytes_in_a_jpegs_metadata_cost_no_image(junk: bytes, marker: int) -> None:
    data = jpeg_with(segment(marker, junk))
    np.testing.assert_array_equal(decode_image(data), decode_image(JPEG))


@settings(max_examples=examples(30))
@given(
    junk=st.binary(max_size=60), kind=st.sampled_from((*ANCILLARY, *ANIMATION, b"zTXt", b"iTXt"))
)
def test_any_bytes_in_a_pngs_metadata_cost_no_image(junk: bytes, kind: bytes) -> None:
    np.testing.assert_array_equal(decode_image(png_with(chunk(kind, junk))), decode_image(PNG))


SIDEWAYS = {
    "EXIF": png_with(chunk(b"eXIf", EXIF_SIDEWAYS)),
    "EXIF as text": png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(
            f"\nexif\n {len(EXIF_SIDEWAYS)}\n{EXIF_SIDEWAYS.hex()}\n".encode()
        ))
    ),
    "XMP": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_SIDEWAYS)),
    "packed XMP": png_with(
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP_SIDEWAYS))
    ),
    "JPEG": jpeg_with(segment(0xE1, b"Exif\0\0" + EXIF_SIDEWAYS)),
    "JPEG with XMP": jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP_SIDEWAYS)),
    "WebP": file_of("WEBP", lossless=True, exif=b"Exif\0\0" + EXIF_SIDEWAYS),
}  # fmt: skip


@pytest.mark.parametrize("name", SIDEWAYS)
def test_the_orientation_is_taken_from_the_metadata(name: str) -> None:
    plain = {"JPEG": JPEG, "WebP": WEBP}.get(name.split()[0], PNG)
    expected = np.rot90(decode_image(plain), -1)
    np.testing.assert_array_equal(decode_image(SIDEWAYS[name]), expected)
    assert image_size(io.BytesIO(SIDEWAYS[name])) == (48, 32)


def test_metadata_that_is_unpacked_is_bounded() -> None:
    bomb = zlib.compress(bytes(20 << 20), 9)
    packed = chunk(b"iCCP", b"p\0\0" + bomb), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)
    found = read_image(png_with(*packed))
    np.testing.assert_array_equal(found.image, decode_image(PNG))
    assert found.note == "its colour profile is broken or too large: read as sRGB"


def test_pillows_own_limits_stay_as_they_are() -> None:
    before = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    decode_image(PNGS["much text"])
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(PNGS["packed text"])).load()


@pytest.mark.parametrize(
    "data",
    [
        png_with(chunk(b"tEXt", b"a\0text"))[:-40],
        jpeg_with(segment(0xE2, b"MPF\0"))[:-300],
        META_WEBP[: META_WEBP.index(b"VP8L") + 40],
        PNG.replace(b"IHDR", b"IHDX"),
        JPEG[:2] + segment(0xE1, b"Exif\0\0")[:-3],
        JPEG[:2],
    ],
)
def test_pixels_that_are_cut_or_corrupt_are_still_an_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data)


def test_metadata_is_not_read_for_the_size_alone() -> None:
    class Counting(io.BytesIO):
        num_read = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.num_read += len(data)
            return data

    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8))
    for data in (file_of("PNG", large), file_of("JPEG", large, exif=Image.Exif())):
        source = Counting(data)
        assert image_size(source) == (300, 300)
        assert source.num_read < 5000 < len(data)
