"""Tar files made block by block, as no tar program would make them."""

from __future__ import annotations

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    target: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    """One header block; a negative size, or one too large for octal digits, is in base 256."""
    block = bytearray(BLOCK)
    if isinstance(size, int):
        octal = 0 <= size < 8**11
        size = b"%011o\0" % size if octal else base_256(size)
    for start, field in (
        (0, name[:100]), (100, b"0000644\0"), (124, size), (156, kind), (157, target[:100]),
        (257, magic), (345, prefix),
    ):  # fmt: skip
        block[start : start + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base_256(size: int) -> bytes:
    """A size field of 12 bytes in base 256."""
    return (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")


def padded(content: bytes) -> bytes:
    """Content filled up to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def member(name: bytes, content: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header and the content."""
    return header(name, len(content), kind, **fields) + padded(content)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header of records `key=value`."""
    body = b""
    for record in records:
        length = len(record) + 3
        while len(b"%d %s\n" % (length, record)) != length:
            length += 1
        body += b"%d %s\n" % (length, record)
    return member(b"pax", body, kind)
