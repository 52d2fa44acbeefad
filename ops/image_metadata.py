"""Takes metadata out of an image file before Pillow parses it.

Pillow refuses a whole image for metadata that is large (text of more than 1 MB in a PNG), corrupt
(a checksum, a short field) or inconsistent (frames of an animation that are not read here). So it
gets the file without any, as far as the pixels do not depend on it; EXIF, XMP and the colour
profile are taken from the file here. Nothing is unpacked beyond MAX_PROFILE or MAX_TEXT bytes.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

MAX_PROFILE = 16 << 20  # bytes; those of printers have up to 4 MB
MAX_TEXT = 1 << 20
BLOCK = 1 << 16


class ImageParts(NamedTuple):
    """An image file in two parts."""

    pixels: BinaryIO  # the file as Pillow gets it
    #: For Image.info: "exif", "xmp", "icc_profile" (bytes), "Raw profile type exif" (text). A
    #: profile that cannot be unpacked has no bytes.
    metadata: dict[str, Any]
    cut_short: bool = False  # a JPEG without an end marker, where libjpeg would fill in grey


def split_metadata(source: BinaryIO, header_only: bool = False) -> ImageParts:
    """The parts of an image file that is read from its start.

    With `header_only` the part for Pillow may end where the pixels begin. Files of other formats
    than JPEG, PNG, WebP, AVIF, JPEG 2000 and TIFF stay whole.
    """
    head = source.read(12)
    source.seek(0)
    for fits, split in _FORMATS:
        if fits(head):
            return split(source, header_only)
    return ImageParts(source, {})


def _inflated(data: bytes, limit: int) -> bytes | None:
    """A whole zlib stream unpacked; None where it is corrupt or has more than `limit` bytes."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data, limit)
    except zlib.error:
        return None
    return found if unpacker.eof else None


# --- PNG (W3C, third edition)

PNG_START = b"\x89PNG\r\n\x1a\n"
RAW_EXIF = b"Raw profile type exif"  # where ImageMagick puts EXIF


def _split_png(source: BinaryIO, header_only: bool) -> ImageParts:
    kept, metadata = [source.read(len(PNG_START))], dict[str, Any]()
    while True:
        head = source.read(8)
        kind = head[4:]
        if len(head) < 8 or (header_only and kind == b"IDAT"):
            kept.append(head)
            break
        length = int.from_bytes(head[:4], "big") + 4  # the checksum, too
        if not kind.isalpha() or kind[:1].isupper() or kind == b"tRNS":
            kept.append(head + source.read(length))
            if kind == b"IEND":
                break
        elif kind in _PNG_METADATA:
            body = source.read(length)
            if len(body) == length and zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:]):
                _PNG_METADATA[kind](body[:-4], metadata)
        else:
            source.seek(length, io.SEEK_CUR)
    return ImageParts(io.BytesIO(b"".join(kept)), metadata)


def _add_png_exif(body: bytes, metadata: dict[str, Any]) -> None:
    metadata.setdefault("exif", b"Exif\0\0" + body)


def _add_png_profile(body: bytes, metadata: dict[str, Any]) -> None:
    _, _, packed = body.partition(b"\0")
    profile = _inflated(packed[1:], MAX_PROFILE) if packed[:1] == b"\0" else None
    metadata.setdefault("icc_profile", profile or b"")


def _add_png_text(body: bytes, metadata: dict[str, Any]) -> None:
    keyword, _, text = body.partition(b"\0")
    if keyword == RAW_EXIF and len(text) <= MAX_TEXT:
        metadata.setdefault(keyword.decode(), text.decode("latin-1"))


def _add_png_packed_text(body: bytes, metadata: dict[str, Any]) -> None:
    keyword, _, packed = body.partition(b"\0")
    if keyword == RAW_EXIF and packed[:1] == b"\0":
        text = _inflated(packed[1:], MAX_TEXT)
        if text is not None:
            metadata.setdefault(keyword.decode(), text.decode("latin-1"))


def _add_png_xmp(body: bytes, metadata: dict[str, Any]) -> None:
    # keyword, 0, whether compressed, method, language, 0, translated keyword, 0, text
    found = re.fullmatch(rb"XML:com\.adobe\.xmp\0([\0\1])\0[^\0]*\0[^\0]*\0(.*)", body, re.DOTALL)
    if found is None:
        return
    text = _inflated(found[2], MAX_TEXT) if found[1] == b"\1" else found[2]
    if text is not None and len(text) <= MAX_TEXT:
        metadata.setdefault("xmp", text)


_PNG_METADATA: dict[bytes, Callable[[bytes, dict[str, Any]], None]] = {
    b"eXIf": _add_png_exif,
    b"iCCP": _add_png_profile,
    b"tEXt": _add_png_text,
    b"zTXt": _add_png_packed_text,
    b"iTXt": _add_png_xmp,
}


# --- JPEG (ITU-T T.81, annex B)

SCAN, END, COMMENT = 0xDA, 0xD9, 0xFE
ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment
EXIF, XMP, PROFILE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"


def _split_jpeg(source: BinaryIO, header_only: bool) -> ImageParts:
    kept, metadata = [source.read(2)], dict[str, Any]()
    profile: list[bytes] = []
    while (marker := _next_marker(source)) is not None:
        if marker in (*ALONE, END):
            kept.append(bytes((0xFF, marker)))
            continue
        size = source.read(2)
        length = max(int.from_bytes(size, "big") - 2, 0)
        body = source.read(length)
        if not (0xE0 <= marker <= 0xEF or marker == COMMENT):
            kept.append(bytes((0xFF, marker)) + size + body)
        elif len(body) == length:
            if _decides_colours(marker, body):
                kept.append(bytes((0xFF, marker)) + size + body)
            elif body.startswith(PROFILE):
                profile.append(body[len(PROFILE) :])
            else:
                _add_jpeg_metadata(body, metadata)
        if marker == SCAN:
            break
    if profile:
        metadata["icc_profile"] = _joined(profile)
    if header_only:
        return ImageParts(io.BytesIO(b"".join(kept)), metadata)
    rest = source.read()
    # In the data of a scan no FFD9 can occur.
    return ImageParts(io.BytesIO(b"".join((*kept, rest))), metadata, b"\xff\xd9" not in rest)


def _next_marker(source: BinaryIO) -> int | None:
    """The next marker, as libjpeg finds it behind a segment of a wrong length; None at the end."""
    block = source.read(2)
    if len(block) == 2 and block[0] == 0xFF and block[1] not in (0, 0xFF):
        return block[1]
    while block:
        found = re.search(rb"\xff([^\0\xff])", block)
        if found:
            source.seek(found.end() - len(block), io.SEEK_CUR)
            return found[1][0]
        more = source.read(BLOCK)
        block = block[-1:] + more if more else b""
    return None


def _decides_colours(marker: int, body: bytes) -> bool:
    """Whether libjpeg takes the meaning of the components from this segment."""
    return (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
        marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
    )


def _add_jpeg_metadata(body: bytes, metadata: dict[str, Any]) -> None:
    if body.startswith(EXIF):  # continued in further segments where it is longer than one
        metadata["exif"] = metadata["exif"] + body[6:] if "exif" in metadata else body
    elif body.startswith(XMP):
        metadata.setdefault("xmp", body[len(XMP) :])


def _joined(pieces: list[bytes]) -> bytes:
    """A profile from its pieces, which begin with their number and the number of all."""
    if len(pieces) == 1:
        return pieces[0][2:]
    by_number = {piece[0]: piece[2:] for piece in pieces if len(piece) >= 2}
    count = pieces[0][1] if len(pieces[0]) >= 2 else 0
    whole = sorted(by_number) == list(range(1, count + 1))
    return b"".join(by_number[number] for number in sorted(by_number)) if whole else b""


# --- WebP (RFC 9649)

WEBP_METADATA = {b"ICCP": "icc_profile", b"EXIF": "exif", b"XMP ": "xmp"}
HAS_METADATA = 0x20 | 0x08 | 0x04  # the flags of these three in VP8X


def _split_webp(source: BinaryIO, header_only: bool) -> ImageParts:
    data = source.read()
    kept, metadata = [], dict[str, Any]()
    place, end = 12, 8 + int.from_bytes(data[4:8], "little")
    has_still = False
    while place + 8 <= min(end, len(data)):
        kind, length = struct.unpack_from("<4sI", data, place)
        body = data[place + 8 : place + 8 + length]
        if kind in WEBP_METADATA:
            if len(body) == length:
                metadata.setdefault(WEBP_METADATA[kind], body)
        elif len(body) < length:
            return ImageParts(io.BytesIO(data), metadata)
        else:
            has_still |= kind in (b"VP8 ", b"VP8L")
            if kind == b"VP8X" and body:
                body = bytes((body[0] & ~HAS_METADATA,)) + body[1:]
            kept.append(data[place : place + 8] + body + b"\0" * (length % 2))
        place += 8 + length + length % 2
    if len(data) < end and not has_still:  # an animation, of which frames are missing
        return ImageParts(io.BytesIO(data), metadata)
    body = b"WEBP" + b"".join(kept)
    return ImageParts(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body), metadata)


# --- AVIF (ISO/IEC 23008-12)

#: The entry of an item of EXIF. Its content decides nothing: boxes of their own rotate the image.
EXIF_ITEM = re.compile(rb"(infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2})Exif", re.DOTALL)


def _split_avif(source: BinaryIO, header_only: bool) -> ImageParts:
    return ImageParts(io.BytesIO(EXIF_ITEM.sub(rb"\1none", source.read())), {})


# --- JPEG 2000 (ITU-T T.800, annex I), whose profiles Pillow does not look for

JP2_START = b"\0\0\0\x0cjP  "


def _split_jp2(source: BinaryIO, header_only: bool) -> ImageParts:
    metadata = dict[str, Any]()
    while (header := _next_box(source)) is not None:
        if header[0] == b"jp2h":
            fields = io.BytesIO(source.read(header[1]))
            while (box := _next_box(fields)) is not None:
                body = fields.read(box[1])
                if box[0] == b"colr" and body[:1] in (b"\2", b"\3"):  # the method: an ICC profile
                    metadata.setdefault("icc_profile", body[3:])
            break
        source.seek(header[1], io.SEEK_CUR)
    source.seek(0)
    return ImageParts(source, metadata)


def _next_box(source: BinaryIO) -> tuple[bytes, int] | None:
    """The kind of the next box and the bytes it has; None at the end, or for a large one."""
    head = source.read(8)
    length = int.from_bytes(head[:4]) - 8
    return (head[4:], length) if len(head) == 8 and length >= 0 else None


# --- TIFF 6.0; BigTIFF stays whole

#: Tags that the pixels depend on.
TIFF_PIXELS = frozenset((
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325,
    332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 34925, 50674,
))  # fmt: skip
ORIENTATION, TIFF_XMP, TIFF_PROFILE = 274, 700, 34675
SHORT, BYTES = 3, (1, 7)  # types
TIFF_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1))  # bytes, by type


class _TiffEntry(NamedTuple):
    """An entry of a directory: one tag."""

    tag: int
    kind: int
    num_values: int
    place: int  # of the value in the file, or the value itself

    def lies_before(self, end: int) -> bool:
        """Whether the value is in a file of `end` bytes."""
        size = self.num_values * TIFF_SIZES.get(self.kind, end + 5)
        return size <= 4 or self.place + size <= end

    def is_useful(self, end: int) -> bool:
        """Whether Pillow needs it, and can read it if it is metadata."""
        if self.tag == ORIENTATION:
            return (self.kind, self.num_values) == (SHORT, 1)
        if self.tag in (TIFF_XMP, TIFF_PROFILE):
            return self.kind in BYTES and self.lies_before(end)
        return self.tag in TIFF_PIXELS


def _split_tiff(source: BinaryIO, header_only: bool) -> ImageParts:
    order = "<" if source.read(2) == b"II" else ">"
    end = source.seek(0, io.SEEK_END)
    source.seek(4)
    place = source.seek(struct.unpack(order + "I", source.read(4).ljust(4, b"\0"))[0])
    (count,) = struct.unpack(order + "H", source.read(2).ljust(2, b"\0"))
    table = source.read(12 * count)
    entries = [
        _TiffEntry(*struct.unpack_from(order + "HHII", table, first))
        for first in range(0, len(table) - 11, 12)
    ]
    source.seek(0)
    if len(entries) < count or (header_only and all(each.lies_before(end) for each in entries)):
        return ImageParts(source, {})
    kept = [
        table[12 * number : 12 * number + 12]
        for number, entry in enumerate(entries)
        if entry.is_useful(end)
    ]
    data = bytearray(source.read())
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + b"\0" * 4
    data[place : place + len(directory)] = directory
    return ImageParts(io.BytesIO(data), {})


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, bool], ImageParts]], ...] = (
    (lambda head: head.startswith(b"\xff\xd8\xff"), _split_jpeg),
    (lambda head: head.startswith(PNG_START), _split_png),
    (lambda head: head[:4] == b"RIFF" and head[8:] == b"WEBP", _split_webp),
    (lambda head: head[4:8] == b"ftyp", _split_avif),
    (lambda head: head.startswith(JP2_START), _split_jp2),
    (lambda head: head.startswith((b"II*\0", b"MM\0*")), _split_tiff),
)
