"""The members of a tar file, from its headers: formats v7, ustar, GNU and pax.

Python's tarfile takes a broken header or the first empty block for the end of the file, believes
every size and calls itself once for each extended header. This walk checks each size against the
file before it uses it and goes on after empty blocks (`cat 1.tar 2.tar`); it keeps one member in
memory, and its time is linear in the file's size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from ops.text import printable
from pipelines.inputs.packed_files import reason_packed
from pipelines.inputs.source_files import PositionedFile

BLOCK = 512
MAX_NAME = 4096  # bytes of a name that can be used: the longest path on Linux
MAX_EXTENSION = 1 << 20  # bytes of a long name or a pax header
ZEROS_TOGETHER = 1 << 16  # bytes of empty blocks read at once

Kind = Literal["file", "link", "folder"]
HARD_LINK, SYMBOLIC_LINK, SPARSE = b"1", b"2", b"S"
FILES = frozenset((b"0", b"\0", b"7", SPARSE))
LINKS = frozenset((HARD_LINK, SYMBOLIC_LINK))
SPECIAL = frozenset((b"3", b"4", b"6"))  # devices and pipes
FOLDERS = frozenset((b"5", b"D", b"V"))  # V: the name of the archive itself
WITHOUT_CONTENT = frozenset((*SPECIAL, b"5"))  # whatever size their headers give
EXTENSIONS = frozenset((b"x", b"X", b"g", b"L", b"K"))  # they describe the next member, or all

PAX_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ([^=\n]+)=")
PAX_KEYS = frozenset((b"path", b"linkpath", b"size", b"GNU.sparse.name"))
PAX_SPARSE = b"GNU.sparse."
OCTAL = re.compile(rb"[0-7]*")


class TarError(Exception):
    """A tar file that cannot be read beyond some byte; the message says why."""


class TarMember(NamedTuple):
    """One member of a tar file."""

    name: str  # bytes that are not UTF-8 are lone surrogates
    kind: Kind
    place: int  # the byte at which its content starts
    size: int  # bytes of content
    head: bytes  # the first BLOCK bytes of its content, which tell what it is
    target: str  # of a link: a path in the archive, not normalized
    defect: str | None  # why its content cannot be used, if it cannot


class _Header(NamedTuple):
    """What one block says."""

    type: bytes
    name: bytes
    size: int
    target: bytes
    more_blocks: bool  # of a sparse member's map


def content_size(block: bytes) -> int:
    """The size of the file whose header `block` is; raises ValueError if it is none."""
    header = _parsed(block)
    if header.type in EXTENSIONS or header.type == SPARSE:
        raise ValueError("not the header of a file's content")
    return header.size


def tar_members(file: PositionedFile) -> Iterator[TarMember]:
    """The members in the order they are stored, folders and special files as well.

    Raises TarError where the file is cut short, is broken, goes on with something else or cannot be
    read; the members yielded before that are valid.
    """
    return _Walk(file).members()


class _Walk:
    """A position in a tar file that moves from block to block."""

    def __init__(self, file: PositionedFile) -> None:
        self._file = file
        self._end = file.size
        self._offset = 0
        self._after_zeros = False

    def members(self) -> Iterator[TarMember]:
        shared: dict[bytes, bytes] = {}  # pax fields of all members that follow
        own: dict[bytes, bytes] = {}  # those of the next member
        extended = False
        while blocks := self._read(self._offset, 2 * BLOCK):
            if not blocks[:BLOCK].strip(b"\0") and not extended:
                self._skip_zeros()
                continue
            header = self._header(blocks[:BLOCK])
            if header.type in EXTENSIONS:
                (shared if header.type == b"g" else own).update(self._extension(header))
                extended = header.type != b"g"
                continue
            yield self._member(header, {**shared, **own}, blocks[BLOCK:])
            own.clear()
            extended = False
        if not self._end:
            raise TarError("it is empty")
        if not self._after_zeros:
            raise TarError("it has no end marker: it may have been cut short")

    def _header(self, block: bytes) -> _Header:
        after_zeros, self._after_zeros = self._after_zeros, False
        try:
            return _parsed(block)
        except ValueError as error:
            if not self._offset:
                why = reason_packed(block) or "it is not a tar file"
            elif after_zeros:
                why = f"what follows its end at byte {self._offset:,} is no tar file"
            else:
                why = f"the header at byte {self._offset:,} is broken ({error})"
            raise TarError(why) from None

    def _member(self, header: _Header, fields: Mapping[bytes, bytes], after: bytes) -> TarMember:
        """The member of a header and of the extended headers before it; moves past it."""
        start = self._offset
        name = _text(fields.get(b"GNU.sparse.name") or fields.get(b"path") or header.name)
        kind, defect = _kind_of(header, name, fields)
        size = int(fields.get(b"size") or header.size)
        target = ""
        if kind == "link":
            target = _text(fields.get(b"linkpath") or header.target)
            if header.type == SYMBOLIC_LINK:
                target = os.path.join(os.path.dirname(name), target)
            elif size and not _is_header(after):  # pax may store the content with a hard link
                kind, target = "file", ""
        if kind == "file" and size != header.size:
            # Reading finds the size in the header alone. Writers let the two differ above 8 GiB.
            defect = defect or "its headers give two sizes"
        self._offset += BLOCK
        if header.more_blocks:
            self._skip_sparse_map()
        place = self._offset
        if kind == "link" or header.type in WITHOUT_CONTENT:
            size = 0
        left = max(0, self._end - place)
        if size > left:
            what = f"its member '{printable(name, 200)}' at byte {start:,}"
            raise TarError(f"{what} has {size:,} bytes, of which {left:,} are there")
        self._skip(size)
        head = after[: min(size, BLOCK)] if place == start + BLOCK else b""
        return TarMember(name, kind, place, size, head, target, defect)

    def _extension(self, header: _Header) -> dict[bytes, bytes]:
        """The fields of an extended header; moves past it."""
        what = f"the extended header at byte {self._offset:,}"
        if header.size > MAX_EXTENSION:
            raise TarError(f"{what} has {header.size:,} bytes; the limit is {MAX_EXTENSION:,}")
        self._offset += BLOCK
        body = self._read(self._offset, header.size)
        if len(body) < header.size:
            raise TarError(f"it ends within {what}")
        self._skip(header.size)
        if header.type in (b"L", b"K"):
            return {b"path" if header.type == b"L" else b"linkpath": body}
        try:
            return _pax_fields(body)
        except ValueError:
            raise TarError(f"{what} is broken") from None

    def _skip(self, size: int) -> None:
        """Move past content of `size` bytes to the next block."""
        self._offset += -(-size // BLOCK) * BLOCK

    def _skip_sparse_map(self) -> None:
        more = True
        while more:
            block = self._read(self._offset, BLOCK)
            if len(block) < BLOCK:
                raise TarError("it ends within a sparse member's map")
            more = bool(block[504])
            self._offset += BLOCK

    def _skip_zeros(self) -> None:
        """Move past empty blocks; holes are not read, as a sparse file may have exabytes."""
        self._after_zeros = True
        self._offset += BLOCK
        while chunk := self._read(self._offset, ZEROS_TOGETHER):
            content = chunk.lstrip(b"\0")
            if content:
                self._offset += (len(chunk) - len(content)) // BLOCK * BLOCK
                return
            self._offset += len(chunk)
            self._offset += (
                max(0, self._file.next_data(self._offset) - self._offset) // BLOCK * BLOCK
            )

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return self._file.read_at(offset, size)
        except OSError as error:
            raise TarError(f"byte {offset:,} cannot be read ({error.strerror})") from None


def _kind_of(header: _Header, name: str, fields: Mapping[bytes, bytes]) -> tuple[Kind, str | None]:
    """What a member is, and why its content cannot be used, if it cannot."""
    if header.type in LINKS:
        return "link", None
    if header.type in FOLDERS or (header.type == b"\0" and name.endswith("/")):
        return "folder", None
    if header.type in SPECIAL:
        return "file", "not a regular file"
    if header.type not in FILES:
        return "file", f"a member of type {printable(header.type)}, which is not read"
    if header.type == SPARSE or PAX_SPARSE in fields:
        return "file", "a sparse member, which is not read: write the tar file without --sparse"
    return "file", None


def _parsed(block: bytes) -> _Header:
    """What a header block says; raises ValueError if it is none."""
    if len(block) < BLOCK:
        raise ValueError("it is cut short")
    summed = block[:148] + b" " * 8 + block[156:]  # the checksum itself counts as spaces
    error = sum(summed) - _number(block[148:156])
    if error and error != 256 * sum(byte > 127 for byte in summed):  # old writers: signed bytes
        raise ValueError("its checksum is wrong")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return _Header(
        block[156:157],
        prefix + b"/" + name if prefix else name,
        _number(block[124:136]),
        block[157:257].partition(b"\0")[0],
        block[156:157] == SPARSE and bool(block[482]),
    )


def _number(field: bytes) -> int:
    """A header's number, octal or base 256; raises ValueError if it is none or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not OCTAL.fullmatch(digits):
        raise ValueError("a number is negative or malformed")
    return int(digits or b"0", 8)


def _is_header(block: bytes) -> bool:
    """Whether a block is a header or empty, or the file has ended before it."""
    try:
        return not block.strip(b"\0") or bool(_parsed(block))
    except ValueError:
        return False


def _pax_fields(body: bytes) -> dict[bytes, bytes]:
    """The fields of a pax header that matter here; raises ValueError if it is malformed."""
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(body) and body[at]:
        record = PAX_RECORD.match(body, at)
        end = at + int(record[1]) if record else 0
        if record is None or end <= record.end() or body[end - 1 : end] != b"\n":
            raise ValueError("a malformed record")
        key, value = record[2], body[record.end() : end - 1]
        if key.startswith(PAX_SPARSE):
            fields[PAX_SPARSE] = b"1"
        if key in PAX_KEYS:
            fields[key] = value
        at = end
    if not re.fullmatch(rb"[0-9]{0,20}", fields.get(b"size", b"")):
        raise ValueError("a malformed size")
    return fields


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="surrogateescape")
