"""Image files with odd chunks and segments, whose checksums are right, and with broken bytes."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.fuzz.raw_bytes import mutated_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
#: Contents of JPEG segments.
SEGMENTS = (
    b"", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0", b"\0" * 9, b"x" * 65_533,
    b"ICC_PROFILE\0\1\1none", b"Adobe\0\1\2\3\4\5\6",
)  # fmt: skip
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageFile(NamedTuple):
    """An image file, and whether it is one that must be encoded."""

    data: bytes
    suffix: str
    good: bool = False


def png_chunk(kind: bytes, data: bytes, crc: bool = True) -> bytes:
    check = zlib.crc32(kind + data) if crc else 0xBAD
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, content) of each chunk of a sound PNG."""
    chunks, at = [], len(SIGNATURE)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return chunks


def metadata_chunks() -> dict[str, bytes]:
    """Chunks that say nothing about the pixels, by what is odd about them."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    large = b"c" * (2 << 20)
    return {
        "text": png_chunk(b"tEXt", b"Comment\0" + large),
        "compressed text": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(large)),
        "international text": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(large)),
        "text bomb": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(large * 32)),
        "many texts": png_chunk(b"tEXt", b"Comment\0" + b"c" * 50_000) * 60,
        "no text": png_chunk(b"tEXt", b""),
        "profile": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)),
        "large profile": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(profile + large)),
        "broken profile": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(b"none")),
        "not compressed profile": png_chunk(b"iCCP", b"p\0\0none"),
        "physical": png_chunk(b"pHYs", struct.pack(">IIB", 0, 0, 1)),
        "broken physical": png_chunk(b"pHYs", struct.pack(">IIB", 1, 1, 1), crc=False),
        "broken time": png_chunk(b"tIME", b"1234567", crc=False),
        "short physical": png_chunk(b"pHYs", b"1"),
        "exif": png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff"),
        "unknown": png_chunk(b"abCd", b"x" * 99),
    }


METADATA = metadata_chunks()


@st.composite
def image_files(draw: st.DrawFn, image: Image.Image) -> ImageFile:
    """`image` in a format, with an oddity."""
    name = draw(st.sampled_from(["PNG", "PNG", "PNG", "JPEG", *FORMATS]))
    buffer = io.BytesIO()
    image.save(buffer, name)
    data, suffix = buffer.getvalue(), {"JPEG2000": "jp2"}.get(name, name.lower())
    change = draw(st.sampled_from(["chunk", "chunk", "header", "bytes", "bytes"]))
    if name == "PNG" and change == "chunk":
        return draw(_odd_png(data))
    if name == "PNG" and change == "header":
        return ImageFile(draw(_odd_header(data)), suffix)
    if name == "JPEG" and change != "bytes":
        return ImageFile(draw(_odd_jpeg(data)), suffix)
    for _ in range(draw(st.integers(1, 2))):
        data = draw(mutated_bytes(data)).data if data else data
    return ImageFile(data, draw(st.sampled_from([suffix] * 4 + ["png", "jpg", "tif"])))


@st.composite
def _odd_png(draw: st.DrawFn, data: bytes) -> ImageFile:
    """A PNG with metadata before its pixels, as large or broken as metadata may be."""
    chunk = METADATA[draw(st.sampled_from(sorted(METADATA)))]
    kinds = png_chunks(data)
    parts = [png_chunk(*each) for each in kinds]
    at = draw(st.sampled_from([1, 1, len(parts) - 1]))
    return ImageFile(SIGNATURE + b"".join([*parts[:at], chunk, *parts[at:]]), "png", good=True)


@st.composite
def _odd_header(draw: st.DrawFn, data: bytes) -> bytes:
    """A PNG whose IHDR has another size, depth or colour type."""
    side = st.sampled_from([0, 1, 16, 24, 32, 10_000, 12_000, 65_536, 2**31 - 1, 2**32 - 1])
    rest = st.tuples(st.sampled_from([1, 2, 4, 8, 16, 3, 0]), st.integers(0, 7), st.just(0),
                     st.sampled_from([0, 0, 1]), st.sampled_from([0, 1, 2]))  # fmt: skip
    head = struct.pack(">II5B", draw(side), draw(side), *draw(rest))
    chunks = [(kind, head if kind == b"IHDR" else content) for kind, content in png_chunks(data)]
    return SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)


@st.composite
def _odd_jpeg(draw: st.DrawFn, data: bytes) -> bytes:
    """A JPEG with another segment after its start, or another size in its frame header."""
    if draw(st.booleans()):
        at = data.index(b"\xff\xc0") + 5
        side = st.sampled_from([0, 1, 65_535, 12_000, 24])
        return data[:at] + struct.pack(">HH", draw(side), draw(side)) + data[at + 4 :]
    marker = bytes([draw(st.integers(0xC0, 0xFE))])
    content = draw(st.sampled_from(SEGMENTS))
    length = draw(st.sampled_from([len(content) + 2] * 3 + [0, 1, 65_535]))
    return data[:2] + b"\xff" + marker + struct.pack(">H", length) + content + data[2:]
