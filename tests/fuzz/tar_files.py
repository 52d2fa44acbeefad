"""Tar files with odd headers, whose checksums are right, and with broken bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

from tests.fuzz.raw_bytes import mutated_bytes

BLOCK = 512
NAMES = (
    "a.png", "b.jpg", "folder/c.png", "shot 10.15.30.png", "d.depth.png", "e", "f.png ", "g.PNG",
    "./h.png", "é.png", "\x1b[31m.png", "line\nbreak.png", "\u202egnp.png", "x" * 99, "k.json",
    "k.txt", "k.cls", "../../canary/thesis.txt", "/etc/passwd.png", "..", "", "a" * 60 + ".png",
)  # fmt: skip
SIZES = (-1, -512, -1024, 2**31, 2**33 - 1, 2**62, 2**63, 2**70, -(2**70))
SIZE_FIELDS = (b"", b" " * 12, b"\xff" * 12, b"\x80" + b"\0" * 11, b"77777777777\0", b"9" * 12,
               b"-0000000512\0", b"0x200\0", b"\x00" * 11 + b"7")  # fmt: skip
TYPES = b"\x00123456789ABDKLMNSVXgxZz\xff"
PAX_RECORDS = (
    b"GNU.sparse.map=a,b", b"GNU.sparse.map=" + b"0,1," * 4000 + b"1,1",
    b"GNU.sparse.size=-5", b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=s.png",
    b"GNU.sparse.realsize=99999999999999999999", b"size=-1", b"size=0", b"size=512", b"size=1e9",
    b"size=" + b"9" * 40, b"size=" + b"9" * 5000, b"path=renamed.png", b"path=\xff\xfe.png",
    b"path=", b"path=" + b"p" * 70000 + b".png", b"path=a\0b.png", b"linkpath=a.png", b"mtime=nan",
    b"mtime=inf", b"uid=-1", b"uid=x", b"hdrcharset=BINARY", b"hdrcharset=nonsense", b"=", b"path",
    b"SCHILY.xattr.user.x=y", b"comment=" + b"c" * 100000, b"path=\x1b[31m.png",
)  # fmt: skip


PAX_LINES = (b"9" * 30 + b" path=x\n", b"0 path=x\n", b"12 path=abc\n" * 99, b"-5 a=b\n",
             b"12 path=abc", b"\n", b"1 ", b"\xff" * 40)  # fmt: skip
LINK_TARGETS = ("a.png", "missing.png", "link.png", "../../canary/thesis.txt", "")


class TarFile(NamedTuple):
    """A tar file and the names of images that it certainly holds."""

    data: bytes
    members: tuple[str, ...]


@dataclass
class Entry:
    """A part of a tar file."""

    data: bytes
    name: str | None = None  # of an image that must be found if everything before it is sound
    sound: bool = True  # whether what follows is where it should be


@dataclass
class Built:
    data: bytearray = field(default_factory=bytearray)
    members: list[tuple[str, int]] = field(default_factory=list)  # with the end of its content


def number_field(value: int, length: int = 12) -> bytes:
    """A header's number: octal where it fits, else base 256."""
    if 0 <= value < 8 ** (length - 1):
        return b"%0*o\0" % (length - 1, value)
    return (
        (value % 256 ** (length - 1))
        .to_bytes(length - 1, "big")
        .rjust(length, b"\x80" if value >= 0 else b"\xff")
    )


def header(
    name: bytes, size: bytes, kind: bytes = b"0", link: bytes = b"", **fields: bytes
) -> bytes:
    """A header block with the checksum that it should have."""
    block = bytearray(BLOCK)
    block[0 : len(name[:100])] = name[:100]
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124 : 124 + len(size[:12])] = size[:12]
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157 : 157 + len(link[:100])] = link[:100]
    block[257:265] = b"ustar\x0000"
    for place, value in fields.items():
        start = int(place.removeprefix("at"))
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % BLOCK)


def plain(name: str, content: bytes, kind: bytes = b"0") -> bytes:
    """A member as tar writes it."""
    return header(name.encode(), number_field(len(content)), kind) + padded(content)


def pax(records: list[bytes], kind: bytes) -> bytes:
    lines = b""
    for record in records:
        length = len(record) + 2
        while len(b"%d %s\n" % (length, record)) != length:
            length += 1
        lines += b"%d %s\n" % (length, record)
    return plain("pax", lines, kind)


names = st.sampled_from(["a.png", "b.jpg", "folder/c.png"] * 6 + list(NAMES))


@st.composite
def images(draw: st.DrawFn, image: bytes) -> Entry:
    name = draw(names)
    must = name.endswith((".png", ".jpg")) and name.isprintable()
    return Entry(plain(name, image), name.removeprefix("./") if must else None)


@st.composite
def empty_blocks(draw: st.DrawFn, image: bytes) -> Entry:
    """As between the parts of `cat 1.tar 2.tar`."""
    return Entry(b"\0" * BLOCK * draw(st.integers(1, 20)))


def texts(image: bytes) -> st.SearchStrategy[Entry]:
    return st.just(Entry(plain("k.txt", b"a caption")))


@st.composite
def odd_sizes(draw: st.DrawFn, image: bytes) -> Entry:
    numbers = st.sampled_from(SIZES).map(number_field)
    size = draw(numbers | numbers | st.sampled_from(SIZE_FIELDS) | st.binary(max_size=12))
    return Entry(header(draw(names).encode(), size) + padded(image), sound=False)


@st.composite
def odd_types(draw: st.DrawFn, image: bytes) -> Entry:
    kind = bytes([draw(st.sampled_from(TYPES))])
    head = header(draw(names).encode(), number_field(len(image)), kind)
    return Entry(head + padded(image), sound=False)


@st.composite
def odd_fields(draw: st.DrawFn, image: bytes) -> Entry:
    at = draw(st.sampled_from([0, 100, 108, 116, 136, 257, 263, 265, 329, 345, 386, 482]))
    value = draw(st.binary(min_size=1, max_size=12))
    head = header(b"a.png", number_field(len(image)), **{f"at{at}": value})
    return Entry(head + padded(image), sound=False)


@st.composite
def pax_headers(draw: st.DrawFn, image: bytes) -> Entry:
    kind = draw(st.sampled_from([b"x", b"g"]))
    if draw(st.booleans()):
        records = draw(st.lists(st.sampled_from(PAX_RECORDS), min_size=1, max_size=3))
        return Entry(pax(records, kind), sound=False)
    times = draw(st.sampled_from([1, 1, 3000]))
    return Entry(plain("pax", draw(st.sampled_from(PAX_LINES)), kind) * times, sound=False)


@st.composite
def long_names(draw: st.DrawFn, image: bytes) -> Entry:
    size = number_field(draw(st.sampled_from([0, 5, 300, *SIZES])))
    content = draw(st.sampled_from([b"l" * 200 + b".png\0", b"\xff.png\0", b"", b"\0" * 9]))
    kind = draw(st.sampled_from([b"L", b"K"]))
    return Entry(header(b"././@LongLink", size, kind) + padded(content), sound=False)


@st.composite
def links(draw: st.DrawFn, image: bytes) -> Entry:
    target = draw(st.sampled_from(LINK_TARGETS))
    kind = draw(st.sampled_from([b"1", b"2"]))
    return Entry(header(b"link.png", number_field(0), kind, target.encode()))


@st.composite
def broken_blocks(draw: st.DrawFn, image: bytes) -> Entry:
    if draw(st.booleans()):
        return Entry(b"?" + plain(draw(names), image)[1:], sound=False)  # a wrong checksum
    return Entry(draw(st.binary(min_size=1, max_size=BLOCK)).ljust(BLOCK, b"?"), sound=False)


ENTRIES = (
    *(images,) * 6, *(empty_blocks, odd_sizes, pax_headers) * 2, texts, odd_types, odd_fields,
    long_names, links, broken_blocks,
)  # fmt: skip


@st.composite
def entries(draw: st.DrawFn, image: bytes) -> Entry:
    """A part of a tar file, of `image` where it holds one."""
    return draw(draw(st.sampled_from(ENTRIES))(image))


@st.composite
def tar_files(draw: st.DrawFn, image: bytes) -> TarFile:
    """A tar file of a few members that are copies of `image`, mostly with a fault."""
    built, sound = Built(), True
    for entry in draw(st.lists(entries(image), min_size=1, max_size=6)):
        built.data += entry.data
        if entry.name is not None and sound:
            built.members.append((entry.name, len(built.data)))
        sound = sound and entry.sound
    built.data += b"\0" * BLOCK * draw(st.sampled_from([2, 2, 0, 1, 20]))
    data, intact = bytes(built.data), len(built.data)
    if draw(st.integers(0, 3)) == 0 and data:
        data, intact = draw(mutated_bytes(data))
    return TarFile(data, tuple(name for name, end in built.members if end <= intact))
