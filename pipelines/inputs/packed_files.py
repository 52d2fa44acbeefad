"""Files that must be unpacked before they can be read, by their first bytes."""

from __future__ import annotations

PACKED = {
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"PK\x03\x04": "a ZIP file or a spreadsheet",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
}


def packed_kind(head: bytes) -> str | None:
    """What a file with these first bytes, at least six, is if it must be unpacked; else None."""
    return next((kind for start, kind in PACKED.items() if head.startswith(start)), None)


def reason_packed(head: bytes) -> str | None:
    """Why a file with these first bytes is not read, if it must be unpacked first."""
    kind = packed_kind(head)
    return None if kind is None else f"{kind}, which is not read: unpack it first"
