"""Listing folders: complete, in one order, whatever files and links they hold."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.images import ImageError
from pipelines.inputs.entries import ENTRY_SCHEMA, ListingBuilder, sorted_entries
from pipelines.inputs.listing import list_input, list_sources
from pipelines.inputs.patterns import InputError
from pipelines.inputs.reading import Entry, read_bytes

PNG = b"\x89PNG\r\n\x1a\n"


def touch(path: Path, data: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_images_are_found_by_suffix_or_first_bytes_and_sorted_by_key(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/noname", "a.txt/x.webp", "Z.gif", "é\nwith newline.jpg"):
        touch(tmp_path / name)
    touch(tmp_path / "notes.txt", b"words")
    touch(tmp_path / ".DS_Store", PNG)
    touch(tmp_path / ".git/x.png")
    listing = list_sources(tmp_path)
    keys = [entry.key for entry in listing.entries]
    assert keys == ["Z.gif", "a.txt/x.webp", "a/noname", "a/z.png", "b.JPG", "é\nwith newline.jpg"]
    assert listing.skipped == [
        (".DS_Store", "hidden file"),
        (".git", "hidden folder"),
        ("notes.txt", "neither named nor starting like an image"),
    ]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("none", [None, None, None]),
        ("first", [None, "cats", "dogs"]),
        ("last", [None, "cats/deep/er", "dogs"]),
    ],
)
def test_folders_are_classes_as_labels_says(tmp_path: Path, labels: str, names: list) -> None:
    for name in ("cats/deep/er/1.png", "dogs/2.png", "3.png"):
        touch(tmp_path / name)
    listing = list_input(tmp_path, labels)
    assert [entry.label_name for entry in listing.entries] == names
    assert list_input(tmp_path / "dogs/2.png", labels).entries[0].label_name is None


def test_links_are_followed_but_not_in_cycles(tmp_path: Path) -> None:
    touch(tmp_path / "in/a/1.png")
    touch(tmp_path / "elsewhere/2.png")
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/c").symlink_to(tmp_path / "in/c")
    (tmp_path / "in/broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/nothing").symlink_to(tmp_path / "nowhere")
    listing = list_sources(tmp_path / "in")
    assert [entry.key for entry in listing.entries] == ["a/1.png", "b/2.png", "broken.jpg"]
    assert dict(listing.skipped) == {
        "a/up": "a link to a folder above it",
        "c": "cannot be examined (Too many levels of symbolic links)",
        "nothing": "cannot be examined (No such file or directory)",
    }


def test_zarr_store_inside_the_input_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path / "1.png")
    touch(tmp_path / "codes.zarr/zarr.json", b"{}")
    touch(tmp_path / "codes.zarr/g4x4/c/0/0/0")
    listing = list_sources(tmp_path)
    assert [entry.key for entry in listing.entries] == ["1.png"]
    assert listing.skipped == [("codes.zarr", "a Zarr store")]


def test_special_files_and_names_that_are_not_utf8_are_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to a pipe.png").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
    touch(tmp_path / os.fsdecode(b"bad\xff.png"))
    touch(tmp_path / os.fsdecode(b"bad\xff/fine.png"))
    listing = list_sources(tmp_path)
    assert not listing.entries
    assert listing.skipped == [
        ("bad\\xff.png", "its name is not UTF-8: rename it"),
        ("bad\\xff/fine.png", "its name is not UTF-8: rename it"),
        ("pipe", "not a regular file"),
        ("pipe.png", "not a regular file"),
        ("socket.png", "not a regular file"),
        ("to a pipe.png", "not a regular file"),
    ]


def test_broken_image_links_are_entries_that_fail_on_reading(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("nowhere")
    entries = list_sources(tmp_path).entries
    assert [(e.key, e.size, e.etag) for e in entries] == [
        (key, 0, "missing") for key in ("a.png", "b.png", "c.png")
    ]
    for entry, reason in zip(entries, ("unreadable", "unreadable", "missing"), strict=True):
        with pytest.raises(ImageError) as caught:
            read_bytes(entry.uri, entry.offset, entry.size)
        assert caught.value.reason == reason


def test_folders_that_link_to_each_other_are_listed_once_a_path(tmp_path: Path) -> None:
    touch(tmp_path / "a/1.png")
    touch(tmp_path / "b/2.png")
    (tmp_path / "a/to b").symlink_to(tmp_path / "b")
    (tmp_path / "b/to a").symlink_to(tmp_path / "a")
    listing = list_sources(tmp_path)
    keys = [entry.key for entry in listing.entries]
    assert keys == ["a/1.png", "a/to b/2.png", "b/2.png", "b/to a/1.png"]
    assert dict(listing.skipped) == {
        "a/to b/to a": "a link to a folder above it",
        "b/to a/to b": "a link to a folder above it",
    }


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder owned by this process while it runs without root's rights."""
    with tempfile.TemporaryDirectory() as name:
        user = os.geteuid()
        if user == 0:
            os.chown(name, 65534, -1)
            os.seteuid(65534)
        yield Path(name)
        os.seteuid(user)


def test_unreadable_folders_are_skipped_and_marked_unread(
    unprivileged_folder: Path,
) -> None:
    for name in ("closed/1.png", "names only/2.png", "names only/notes", "open/3.png"):
        touch(unprivileged_folder / name)
    (unprivileged_folder / "closed").chmod(0o000)
    (unprivileged_folder / "names only").chmod(0o400)
    listing = list_sources(unprivileged_folder)
    (unprivileged_folder / "names only").chmod(0o700)
    assert [(e.key, e.size) for e in listing.entries] == [
        ("names only/2.png", 0),
        ("open/3.png", len(PNG)),
    ]
    assert listing.skipped == [
        ("closed", "a folder that cannot be read (Permission denied)"),
        ("names only/notes", "cannot be examined (Permission denied)"),
    ]
    assert listing.unread == ["closed"]
    with pytest.raises(InputError, match="closed cannot be read: Permission denied"):
        list_sources(unprivileged_folder / "closed")


def test_file_removed_during_listing_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png", "c"):
        touch(tmp_path / name)
    scandir = os.scandir

    @contextmanager
    def slow_scandir(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            found = list(entries)
        (tmp_path / "b.png").unlink()
        (tmp_path / "c").unlink()
        yield iter(found)

    monkeypatch.setattr(os, "scandir", slow_scandir)
    listing = list_sources(tmp_path)
    assert [entry.key for entry in listing.entries] == ["a.png"]
    gone = "removed while the folder was listed"
    assert listing.skipped == [("b.png", gone), ("c", gone)]


def test_folder_that_fails_half_way_keeps_its_entries_and_is_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a/1.png")
    touch(tmp_path / "2.png")
    scandir = os.scandir

    @contextmanager
    def failing_scandir(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        def each() -> Iterator[os.DirEntry[str]]:
            yield from entries
            if folder.endswith("a"):
                raise OSError(5, "Input/output error")

        with scandir(folder) as entries:
            yield each()

    monkeypatch.setattr(os, "scandir", failing_scandir)
    listing = list_sources(tmp_path)
    assert [entry.key for entry in listing.entries] == ["2.png", "a/1.png"]
    assert listing.unread == ["a"]


def test_etag_changes_with_size_and_with_time(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.png")

    def etag() -> str:
        return list_sources(tmp_path).entries[0].etag

    before = etag()
    assert etag() == before
    os.utime(path, ns=(0, 1))
    touched = etag()
    path.write_bytes(PNG + b"more")
    os.utime(path, ns=(0, 1))
    assert len({before, touched, etag()}) == 3


def test_listing_is_the_same_for_any_order_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.inputs.entries.BATCH", 3)
    entries = [Entry(f"{n % 4}", f"/{n // 4}", n % 3 or None, n, "1", None) for n in range(10)]
    tables = []
    for step in (1, 3, 7):
        builder = ListingBuilder()
        for n in range(10):
            builder.add(entries[n * step % 10])
        tables.append(builder.listing().table)
    assert tables[0].schema == ENTRY_SCHEMA
    assert tables[0].to_pylist() == tables[1].to_pylist() == tables[2].to_pylist()
    order = [(entry["key"], entry["uri"]) for entry in tables[0].to_pylist()]
    assert order == sorted(order)
    assert len(order) == 10


def test_one_file_is_an_input(tmp_path: Path) -> None:
    listing = list_input(touch(tmp_path / "only.png"))
    assert [entry.key for entry in listing.entries] == ["only.png"]


def test_input_that_is_missing_not_utf8_or_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list_input(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not UTF-8"):
        list_input(touch(tmp_path / os.fsdecode(b"\xff") / "a.png").parent)
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        list_input(tmp_path / ("n" * 300))
    with pytest.raises(InputError, match="does not exist"):
        list_input(tmp_path / "a\0b")
    with pytest.raises(InputError, match="does not exist"):
        list_input(touch(tmp_path / "file") / "below.png")
    for name in ("pipe", "pipe.tar", "pipe.parquet", "pipe.png"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=r"holds no images.*not a regular file"):
            list_input(tmp_path / name)
    touch(tmp_path / "words/notes.txt", b"words")
    with pytest.raises(InputError, match="no images"):
        list_input(tmp_path / "words")
    with pytest.raises(ConfigError, match="No labels 'second'"):
        list_input(tmp_path, "second")


@given(st.lists(st.tuples(st.sampled_from("abcé"), st.sampled_from("xy"), st.integers(0, 3))))
def test_entries_are_sorted_by_key_uri_and_offset(found: list[tuple[str, str, int]]) -> None:
    lines = [
        {"key": key, "uri": uri, "offset": offset or None, "size": 1, "etag": f"{place}"}
        for place, (key, uri, offset) in enumerate(found)
    ]
    table = pa.Table.from_pylist(lines, ENTRY_SCHEMA)
    expected = sorted(
        lines,
        key=lambda line: (line["key"].encode(), line["uri"], line["offset"] or 9, line["etag"]),
    )
    for chunked in (table, pa.concat_tables([table.slice(0, 2), table.slice(2)])):
        ordered = sorted_entries(chunked)
        assert ordered.schema == ENTRY_SCHEMA
        names = ["key", "uri", "offset", "size"]
        assert ordered.select(names).to_pylist() == [
            {name: line[name] for name in names} for line in expected
        ]
