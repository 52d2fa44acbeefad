"""Members of a tar file are taken or skipped with the reason, and further fields are counted."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.images import ImageError
from pipelines.inputs import Listing, list_input
from pipelines.inputs.listing import list_sources
from pipelines.inputs.member_log import MOST_KINDS, NAMED, MemberLog
from pipelines.inputs.reading import read_entry
from tests.conftest import examples
from tests.encode_run import EncodeRun
from tests.pipelines.inputs.tar_blocks import END, header, member, pax

PNG = b"\x89PNG\r\n\x1a\n"


def listed(path: Path, *parts: bytes, labels: str = "none") -> Listing:
    path.write_bytes(b"".join(parts) + END)
    return list_sources(path, labels)


def taken(listing: Listing) -> dict[str, bytes]:
    return {entry.key: read_entry(entry)() for entry in listing.entries}


def images(*names: str) -> bytes:
    return b"".join(member(name.encode(), name.encode()) for name in names)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tmp_path / "a.tar"


# --- names


@pytest.mark.parametrize(
    "names",
    [
        ("shot 10.png", "shot 10.15.30.png", "shot 10.15.31.png"),
        ("v1.png", "v1.5.png", "v1.6.png", "v1.v2.png", "v1.2024-05-01.png"),
        ("a/7.depth.png", "a/7.seg.png", "b/7.left.jpg"),  # no image without a further word
        ("7.jpg", "7.png", "7.JPG"),
        ("8.jpg", "a.8.depth.jpg", "x/8.depth.png"),
        ("/abs.png", "../up.png", "a/../b.png", "trailing .png", " .png", "é.webp"),
    ],
)
def test_images_whose_names_have_dots_are_taken(tar: Path, names: tuple[str, ...]) -> None:
    listing = listed(tar, images(*names))
    assert taken(listing) == {name: name.encode() for name in names}
    assert not listing.skipped
    assert not listing.unused


@pytest.mark.parametrize(
    ("image", "fields"),
    [
        ("s/7.jpg", ("s/7.depth.png", "s/7.seg.png", "s/7.seg.left.png")),
        ("v1.5.png", ("v1.5.depth.png",)),  # of an image that has dots itself
    ],
)
def test_fields_that_are_images_are_counted_with_an_example(
    tar: Path, image: str, fields: tuple[str, ...]
) -> None:
    for order in (sorted((image, *fields)), sorted((image, *fields), reverse=True)):
        listing = listed(tar, images(*order))
        assert list(taken(listing)) == [image]
        ((key, line),) = listing.unused
        assert key == "a.tar"
        assert line.startswith(f"{len(fields)} further file{'s' * (len(fields) > 1)} not used (")
        assert all(name in line for name in fields)


def test_members_are_images_by_suffix_or_first_bytes_as_files_are(tar: Path) -> None:
    parts = (
        member(b"noname", PNG), member(b"1.png ", PNG), member(b"2.txt", b"\xff\xd8\xff"),
        member(b"3.png", b"words"), member(b"4.png"), member(b"5", b"words"), member(b"6"),
        member(b"7.txt", b"words"), member(b"8.tar", END),
    )  # fmt: skip
    listing = listed(tar, *parts)
    assert list(taken(listing)) == ["1.png ", "2.txt", "3.png", "4.png", "noname"]
    assert listing.unused == [
        ("a.tar", "4 further files not used (1 .tar, 1 .txt, 2 without a suffix)")
    ]


def test_members_that_cannot_be_used_are_skipped_with_the_reason(tar: Path) -> None:
    parts = (
        member(b".a.png", PNG), member(b"./.git/b.png", PNG), member(b"", PNG),
        member(b"bad\xff.png", PNG), header(b"pipe.png", 0, b"6"), header(b"disk.png", 0, b"3"),
        pax(b"GNU.sparse.major=1") + member(b"holes.png", PNG),
        pax(b"path=" + b"n" * 5000 + b".png") + member(b"x", PNG),
        pax(b"path=" + b"n" * 300 + b".png") + member(b"x", PNG),
    )  # fmt: skip
    listing = listed(tar, *parts)
    assert list(taken(listing)) == ["n" * 300 + ".png"]
    skipped = {key[:20]: reason for key, reason in listing.skipped}
    sparse = skipped.pop("holes.png")
    assert "sparse member, which is not read" in sparse
    assert skipped == {
        "": "it has no name",
        ".a.png": "hidden file",
        ".git/b.png": "in a hidden folder",
        "bad\\xff.png": "its name is not UTF-8: rename it",
        "disk.png": "not a regular file",
        "n" * 20: "its name has 5,004 characters; the limit is 4,096",
        "pipe.png": "not a regular file",
    }
    assert not listing.unread


# --- links


def test_links_are_taken_with_the_content_of_their_target(tar: Path) -> None:
    listing = listed(
        tar,
        header(b"early.png", 0, b"2", b"a/1.png"),  # before its target
        member(b"./a/1.png", b"one"),
        header(b"b/hard.png", 0, b"1", b"./a/1.png"),
        header(b"b/soft.png", 0, b"2", b"../a/1.png"),
        header(b"b/chain.png", 0, b"2", b"hard.png"),
        header(b"here", 0, b"2", b"a"),
        header(b"c/through a folder.png", 0, b"2", b"../here/1.png"),
        member(b".hidden/2", PNG),
        header(b"2", 0, b"2", b".hidden/2"),  # an image by its target's first bytes
        member(b"3.json", b"{}"),
        header(b"4.json", 0, b"1", b"3.json"),
        member(b"/abs/5.png", b"five"),
        header(b"5.png", 0, b"2", b"/abs/5.png"),
        header(b"hidden link/.6.png", 0, b"2", b"a/1.png"),
    )
    expected = dict.fromkeys(
        ("a/1.png", "early.png", "b/hard.png", "b/soft.png", "b/chain.png"), b"one"
    )
    expected["c/through a folder.png"] = b"one"
    assert taken(listing) == {**expected, "2": PNG, "/abs/5.png": b"five", "5.png": b"five"}
    reasons = dict(listing.skipped)
    assert reasons.pop("here") == "a link to 'a', which is no file of the tar file"
    assert reasons == {".hidden/2": "in a hidden folder", "hidden link/.6.png": "hidden file"}
    assert listing.unused == [("a.tar", "2 further files not used (2 .json)")]


def test_links_to_nothing_in_cycles_and_out_of_the_archive_are_skipped(
    tar: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    outside = str(tmp_path / "secret.png").encode()
    names = [b"l%d.png" % number for number in range(60)]
    listing = listed(
        tar,
        member(b"1.png", PNG),
        header(b"1.png", 0, b"1", b"1.png"),  # as tar stores a file that it is given twice
        header(b"out.png", 0, b"2", outside),
        header(b"up.png", 0, b"2", b"../secret.png"),
        header(b"near.png", 0, b"2", b"secret.png"),
        header(b"empty.png", 0, b"2", b""),
        header(b"a.png", 0, b"2", b"b.png"),
        header(b"b.png", 0, b"2", b"a.png"),
        header(b"deep", 0, b"2", b"deep/deep"),
        header(b"device.png", 0, b"1", b"null.png"),
        header(b"null.png", 0, b"3"),
        *(header(name, 0, b"2", other) for name, other in itertools.pairwise(names)),
    )
    assert taken(listing) == {"1.png": PNG}
    reasons = dict(listing.skipped)
    missing = {key for key, reason in reasons.items() if "is no file of the tar file" in reason}
    assert missing >= {"out.png", "up.png", "near.png", "empty.png"}
    endless = {key for key, reason in reasons.items() if "a link that leads to itself" in reason}
    assert endless >= {"1.png", "a.png", "b.png", "deep", "l0.png"}
    assert reasons["device.png"] == "not a regular file"
    assert len(listing.skipped) == 10 + 59


def test_samples_made_of_links_have_fields_and_classes(tar: Path) -> None:
    names = (b"7.cls", b"7.depth.png", b"7.jpg")
    listing = listed(
        tar,
        *(member(b"all/" + name, b"cat") for name in names),
        *(header(b"train/" + name, 0, b"2", b"../all/" + name) for name in names),
        labels="field",
    )
    found = {entry.key: entry.label_name for entry in listing.entries}
    assert found == {"all/7.jpg": "cat", "train/7.jpg": "cat"}


# --- classes


def test_classes_are_read_from_a_samples_field_on_request(tar: Path) -> None:
    parts = (
        member(b"1.cls", b" 7\n"), member(b"1.jpg", b"1"), member(b"1.left.jpg", b"field"),
        member(b"2.jpg", b"2"), member(b"2.label", b"cat"), member(b"2.class", b"dog"),
        member(b"v1.5.cls", b"5"), member(b"v1.5.png"), member(b"v1.6.png"),
        member(b"v1.cls", b"1"), member(b"3.jpg", b"3"), member(b"3.cls", b"\xff"),
        member(b"4.jpg", b"4"), member(b"4.cls", b"two\nlines"), member(b"5.jpg", b"5"),
        member(b"5.cls", b"x" * 201), member(b"6.jpg"), member(b"6.cls", b" "),
    )  # fmt: skip
    listing = listed(tar, *parts, labels="field")
    assert {entry.key: entry.label_name for entry in listing.entries} == {
        "1.jpg": "7", "2.jpg": "dog", "3.jpg": None, "4.jpg": None, "5.jpg": None, "6.jpg": None,
        "v1.5.png": "5", "v1.6.png": "1",
    }  # fmt: skip
    assert [key for key, _ in listing.skipped] == ["3.cls", "4.cls", "5.cls", "6.cls"]
    listing = listed(tar, *parts, labels="first")
    assert not any(entry.label_name for entry in listing.entries)
    (line,) = [line for _, line in listing.unused]
    assert "7 .cls, classes that --labels field reads" in line
    assert not listing.skipped


def test_encode_warns_of_images_without_the_classes_that_were_asked_for(
    run: EncodeRun, tar: Path
) -> None:
    listed(tar, member(b"1.png", PNG), member(b"1.cls", b"7"), member(b"2.png", PNG))
    assert run(tar, labels="first", max_bad=1) == 0
    assert "warning: --labels first: 2 of 2 images have no class" in run.printed
    assert "note: 'a.tar': 1 further file not used (1 .cls, classes that" in run.printed
    out = tar.parent / "fields.zarr"
    assert run(tar, labels="field", out=out, max_bad=1) == 0
    assert "warning: --labels field: 1 of 2 images have no class" in run.printed
    assert "not used" not in run.printed


# --- reports


def test_counts_of_further_files_stay_small(tar: Path) -> None:
    log = MemberLog()
    for number in range(5 * NAMED):
        log.skip(f"{number}.png", f"reason {number % 50}")
        log.count(f".{number % 100}")
    assert len(log.skipped) == NAMED
    more, unused = log.lines()
    assert more == "4,000 more skipped, the last one '4999.png': reason 49"
    assert unused.startswith("5,000 further files not used (")
    assert unused.count(", ") == MOST_KINDS
    assert "others" in unused


def test_tar_that_is_no_regular_file_or_must_be_unpacked_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.png").write_bytes(PNG)
    (folder / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    for name in ("b.tar", "b.parquet"):
        os.mkfifo(folder / name)
    (folder / "c.tar").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "d.tar"))
    listing = list_input(folder)
    assert [entry.key for entry in listing.entries] == ["1.png"]
    assert dict(listing.skipped) == {
        "a.tar.gz": "compressed with gzip, which is not read: unpack it first",
        **dict.fromkeys(("b.parquet", "b.tar", "c.tar", "d.tar"), "not a regular file"),
    }


def test_tar_without_any_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    (tmp_path / "x.tar").write_bytes(bytes(10 * 1024))  # as tar writes of an empty list
    assert list_input(tmp_path).skipped == [("x.tar", "no files")]


def test_content_is_checked_against_the_header_when_it_is_read(tar: Path) -> None:
    listing = listed(tar, member(b"1.png", b"1" * 600))
    (entry,) = listing.entries
    data = tar.read_bytes()
    for changed in (
        header(b"1.png", 2**62) + data[512:], header(b"1.png", -5) + data[512:], data[:700],
        data[:100], b"",
    ):  # fmt: skip
        tar.write_bytes(changed)
        with pytest.raises(ImageError) as caught:
            read_entry(entry)()
        assert caught.value.reason in ("changed", "too large")


# --- any tar file

NAMES = st.sampled_from(
    ["1.png", "1.5.png", "1.depth.png", "a/2.jpg", "a/2.cls", "3", "4.txt", ".h.png", "é/5.png"]
)
TYPES = st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"S", b"x", b"Z"])


@st.composite
def parts(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """(name, type, blocks) of one member."""
    name, kind = draw(NAMES), draw(TYPES)
    content = draw(st.sampled_from([b"", PNG, b"7", PNG * 90]))
    if kind in (b"L", b"x"):
        name += draw(st.sampled_from(["", ".png"]))
        extended = pax(b"path=" + name.encode()) if kind == b"x" else member(
            b"", name.encode() + b"\0", kind=b"L"
        )  # fmt: skip
        return name, b"0", extended + member(b"x", content)
    if kind in (b"1", b"2"):
        return name, kind, header(name.encode(), 0, kind, draw(NAMES).encode())
    if kind in (b"3", b"5", b"6"):
        return name, kind, header(name.encode(), 0, kind)
    gap = draw(st.sampled_from([b"", b"", END]))
    return name, kind, member(name.encode(), content, kind) + gap


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(parts(), min_size=1, max_size=12))
def test_every_member_is_taken_skipped_or_counted(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, bytes]]
) -> None:
    tar = tmp_path_factory.getbasetemp() / "any.tar"
    listing = listed(tar, *(blocks for _, _, blocks in members))
    written = Counter(name for name, kind, _ in members if kind != b"5")
    if not written:
        assert listing.skipped == [("any.tar", "no files")]
        return
    found = Counter(entry.key for entry in listing.entries)
    found += Counter(key for key, _ in listing.skipped)
    assert not found - written
    counted = sum(int(line.split()[0]) for _, line in listing.unused)
    assert found.total() + counted == written.total()
    assert not listing.unread
    for entry in listing.entries:
        assert len(read_entry(entry)()) == entry.size


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(parts(), min_size=1, max_size=6), st.integers(0, 2**32), st.booleans())
def test_any_bytes_end_the_listing_with_images_kept_or_the_archive_unread(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[str, bytes, bytes]],
    seed: int,
    cut: bool,
) -> None:
    chance = random.Random(seed)
    data = bytearray(b"".join(blocks for _, _, blocks in members) + END)
    for _ in range(chance.choice((1, 1, 3, 20))):
        data[chance.randrange(len(data))] = chance.choice((0, 0x80, 0xFF, chance.randrange(256)))
    if cut:
        del data[chance.randrange(len(data)) :]
    tar = tmp_path_factory.getbasetemp() / "mutated.tar"
    tar.write_bytes(data)
    listing = list_sources(tar, chance.choice(("none", "field")))
    for entry in listing.entries:
        assert len(read_entry(entry)()) == entry.size
