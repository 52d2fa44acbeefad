"""Walking a tar file's headers: every format, and nothing believed that the file does not hold."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from pipelines.inputs.source_files import DiskFile
from pipelines.inputs.tar_headers import MAX_EXTENSION, TarError, TarMember, tar_members
from tests.pipelines.inputs.tar_blocks import BLOCK, END, base_256, header, member, padded, pax


def walk(path: Path, data: bytes) -> tuple[list[TarMember], str | None]:
    """The members of a tar file with these bytes, and the error that the walk ends with."""
    path.write_bytes(data)
    found: list[TarMember] = []
    with open(path, "rb") as file:
        try:
            found.extend(tar_members(DiskFile(file)))
        except TarError as error:
            return found, str(error)
    return found, None


def contents(path: Path, members: list[TarMember]) -> dict[str, bytes]:
    data = path.read_bytes()
    return {m.name: data[m.place : m.place + m.size] for m in members if m.kind == "file"}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tmp_path / "a.tar"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_contents_are_those_that_tar_wrote(tar: Path, form: int) -> None:
    names = ["a.png", "b/é.png", "d" * 90 + "/" + "e" * 90 + ".png", "/abs.png", "../up.png"]
    if form != tarfile.USTAR_FORMAT:
        names += ["long/" * 60 + "1.png", "l" * 300 + ".png"]
    with tarfile.open(tar, "w", format=form) as written:
        for size, name in enumerate(names, 511):
            info = tarfile.TarInfo(name)
            info.size = size
            written.addfile(info, io.BytesIO(name.encode()[:1] * size))
    found, error = walk(tar, tar.read_bytes())
    assert error is None
    expected = {name: name.encode()[:1] * size for size, name in enumerate(names, 511)}
    assert contents(tar, found) == expected
    assert all(m.head == expected[m.name][:512] and m.defect is None for m in found)


def test_kinds_of_members_are_distinguished(tar: Path) -> None:
    data = b"".join(
        (
            member(b"old/", kind=b"\0", magic=bytes(8)), member(b"folder", kind=b"5"),
            member(b"volume", kind=b"V"), member(b"old", b"1", kind=b"\0", magic=bytes(8)),
            member(b"contiguous", b"22", kind=b"7"),
            header(b"hard", 0, b"1", b"old"), header(b"a/soft", 0, b"2", b"../old"),
            header(b"old tar's hard", 700, b"1", b"old"),  # gives a size and stores no content
            header(b"pax's hard", 700, b"1", b"old") + padded(b"3" * 700),
            header(b"pipe", 0, b"6"), header(b"device", 512, b"3"), header(b"disk", 0, b"4"),
            member(b"unknown", b"4" * 600, kind=b"M"),
        )
    )  # fmt: skip
    found, error = walk(tar, data + END)
    assert error is None
    kinds = {m.name: (m.kind, m.target, m.defect and m.defect.partition(",")[0]) for m in found}
    special = ("file", "", "not a regular file")
    assert kinds == {
        "old/": ("folder", "", None), "folder": ("folder", "", None),
        "volume": ("folder", "", None), "old": ("file", "", None),
        "contiguous": ("file", "", None), "hard": ("link", "old", None),
        "a/soft": ("link", "a/../old", None), "old tar's hard": ("link", "old", None),
        "pax's hard": ("file", "", None), "pipe": special, "device": special, "disk": special,
        "unknown": ("file", "", "a member of type b'M'"),
    }  # fmt: skip
    assert contents(tar, found)["pax's hard"] == b"3" * 700


def test_extended_headers_describe_the_next_member(tar: Path) -> None:
    long = b"n" * 200
    data = b"".join(
        (
            pax(b"path=from pax", b"mtime=1.5", b"comment=a\nb"), member(b"x", b"1"),
            member(b"", long + b"\0", kind=b"L"), member(b"x", b"2"),
            member(b"", b"old\0", kind=b"L"), pax(b"path=newer"), member(b"x", b"3"),
            member(b"", long + b"\0", kind=b"K"), header(b"link", 0, b"1", b"short"),
            pax(b"linkpath=from pax"), header(b"soft", 0, b"2", b"short"),
            pax(b"path=for all", kind=b"g"), member(b"x", b"4"), pax(b"path=own"),
            member(b"x", b"5"), member(b"x", b"6"),
        )
    )  # fmt: skip
    found, error = walk(tar, data + END)
    assert error is None
    assert [(m.name, m.target) for m in found] == [
        ("from pax", ""), (long.decode(), ""), ("newer", ""), ("link", long.decode()),
        ("soft", "from pax"), ("for all", ""), ("own", ""), ("for all", ""),
    ]  # fmt: skip


def test_sizes_are_read_in_base_256_and_from_pax(tar: Path) -> None:
    data = member(b"a", b"1" * 600).replace(b"%011o\0" % 600, base_256(600))
    block = bytearray(data[:BLOCK])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    same = pax(b"size=5") + member(b"b", b"22222")
    other = pax(b"size=700") + header(b"c") + padded(b"3" * 700)
    found, error = walk(tar, bytes(block) + data[BLOCK:] + same + other + member(b"d") + END)
    assert error is None
    assert contents(tar, found) == {"a": b"1" * 600, "b": b"22222", "c": b"3" * 700, "d": b""}
    assert [m.defect for m in found] == [None, None, "its headers give two sizes", None]


def test_checksums_of_signed_bytes_are_valid_too(tar: Path) -> None:
    block = bytearray(header("é.png".encode()))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) - 2 * 256)
    found, error = walk(tar, bytes(block) + END)
    assert error is None
    assert [m.name for m in found] == ["é.png"]


def test_sparse_members_are_passed_and_cannot_be_used(tar: Path) -> None:
    old = bytearray(header(b"old", 700, b"S"))
    old[482] = 1  # a block of its map follows, and one more after that
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    more = bytearray(BLOCK)
    more[504] = 1
    data = bytes(old) + bytes(more) + bytes(BLOCK) + padded(b"1" * 700)
    data += pax(b"GNU.sparse.major=1", b"GNU.sparse.name=new") + member(b"x", b"2" * 600)
    data += pax(b"GNU.sparse.map=a,b") + member(b"y", b"3")
    found, error = walk(tar, data + member(b"last", b"4") + END)
    assert error is None
    assert [m.name for m in found] == ["old", "new", "y", "last"]
    assert [m.defect is not None and "sparse" in m.defect for m in found] == [True] * 3 + [False]
    assert contents(tar, found)["old"] == b"1" * 700


def test_members_after_empty_blocks_are_read(tar: Path) -> None:
    one, two = member(b"1", b"1"), member(b"2", b"2")
    for gap in (bytes(BLOCK), END, bytes(10240), bytes(3 << 20)):
        found, error = walk(tar, gap + one + gap + two + gap + bytes(100))
        assert error is None
        assert [m.name for m in found] == ["1", "2"]


def test_holes_of_terabytes_are_not_read(tar: Path) -> None:
    tar.write_bytes(member(b"1", b"1"))
    os.truncate(tar, 1 << 42)
    with open(tar, "r+b") as file:
        file.seek((1 << 42) - BLOCK * 8)
        file.write(member(b"2", b"2") + END)
    with open(tar, "rb") as file:
        assert [m.name for m in tar_members(DiskFile(file))] == ["1", "2"]


ONE = member(b"1.png", b"1" * 600)
BROKEN_PAX = [
    b"99999999 path=x\n", b"9" * 30 + b" path=x\n", b"0 path=x\n", b"-5 path=x\n", b"path=x\n",
    b"8 path=x\n", b"10 path=xy", b"12 path\n", b"\xff" * 30, b"12 size=-5\n\n", b"10 size=x\n",
]  # fmt: skip


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (header(b"2", -512) + END, "header at byte 1,536 is broken"),
        (header(b"2", b"-0000000512\0") + END, "header at byte 1,536 is broken"),
        (header(b"2", b"1_0\0") + END, "header at byte 1,536 is broken"),
        (header(b"2", 2**70) + END, "'2' at byte 1,536 has 1,180,591,620,717,411,303,424 bytes"),
        (header(b"2", 2**87) + END, "'2' at byte 1,536 has"),
        (header(b"2", 9999) + END, "of which 1,024 are there"),
        (header(b"", 2**62, b"L") + END, "has 4,611,686,018,427,387,904 bytes; the limit is"),
        (header(b"", MAX_EXTENSION, b"x") + END, "ends within the extended header at byte 1,536"),
        (header(b"s", 0, b"S")[:482] + b"\1" + bytes(29), "broken"),  # and its checksum is wrong
        *((member(b"pax", body, b"x") + END, "extended header at") for body in BROKEN_PAX),
        (pax(b"path=x") + END, "header at byte 2,560 is broken"),
        (pax(b"path=x"), "no end marker"),
        (b"", "no end marker: it may have been cut short"),
        (member(b"2", b"2")[:300], "header at byte 1,536 is broken"),
        (b"?" * BLOCK + END, "header at byte 1,536 is broken"),
        (END + b"words", "what follows its end at byte 2,560 is no tar file"),
        (END + b"words" * 500 + END, "what follows its end at byte 2,560 is no tar file"),
    ],
)  # fmt: skip
def test_members_before_a_defect_are_kept_and_the_defect_is_named(
    tar: Path, rest: bytes, why: str
) -> None:
    found, error = walk(tar, ONE + rest)
    assert [m.name for m in found] == ["1.png"]
    assert error is not None
    assert why in error


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty"),
        (b"words" * 1000, "it is not a tar file"),
        (b"\x1f\x8b" + bytes(1000), "compressed with gzip"),
        (b"BZh9" + bytes(1000), "compressed with bzip2"),
        (b"\xfd7zXZ\0" + bytes(10), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(1000), "compressed with zstd"),
        (
            b"PK\x03\x04" + bytes(1000),
            "a ZIP file or a spreadsheet, which is not read: unpack it first",
        ),
    ],
)
def test_what_is_no_tar_file_is_named(tar: Path, data: bytes, why: str) -> None:
    found, error = walk(tar, data)
    assert not found
    assert error is not None
    assert why in error


def test_thousands_of_extended_headers_take_neither_recursion_nor_memory(tar: Path) -> None:
    data = pax(b"path=2.png", b"comment=" + b"c" * 3000) * 1500 + member(b"x", b"2")
    tracemalloc.start()
    try:
        found, error = walk(tar, ONE + data + END)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with open(tar, "rb") as file:
            assert [m.name for m in tar_members(DiskFile(file))] == ["1.png", "2.png"]
        assert tracemalloc.get_traced_memory()[1] - before < 300_000
    finally:
        tracemalloc.stop()
    assert error is None
    assert [m.name for m in found] == ["1.png", "2.png"]


def test_file_that_cannot_be_read_on_is_an_error(
    tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        if offset >= len(ONE):
            raise OSError(5, "Input/output error")
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    found, error = walk(tar, ONE + END)
    assert [m.name for m in found] == ["1.png"]
    assert error == "byte 1,536 cannot be read (Input/output error)"
