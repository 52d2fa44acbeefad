"""A folder is listed completely, in one order, and nothing in it can trip the reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ops.images import ImageError
from pipelines.readers import InputError, list_folder, list_input, read_bytes

PNG = b"\x89PNG\r\n\x1a\n"


def touch(path: Path, data: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_images_are_listed_by_name_or_by_first_bytes_sorted_by_key(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/noname", "a.txt/x.webp", "Z.gif", "é\nwith newline.jpg"):
        touch(tmp_path / name)
    touch(tmp_path / "notes.txt", b"words")
    touch(tmp_path / ".DS_Store", PNG)
    touch(tmp_path / ".git/x.png")
    listing = list_folder(tmp_path)
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
def test_folders_are_classes_on_request(tmp_path: Path, labels: str, names: list) -> None:
    for name in ("cats/deep/er/1.png", "dogs/2.png", "3.png"):
        touch(tmp_path / name)
    listing = list_input(tmp_path, labels)
    assert [entry.label_name for entry in listing.entries] == names
    assert list_input(tmp_path / "dogs/2.png", labels).entries[0].label_name is None


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "in/a/1.png")
    touch(tmp_path / "elsewhere/2.png")
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/c").symlink_to(tmp_path / "in/c")
    (tmp_path / "in/broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/nothing").symlink_to(tmp_path / "nowhere")
    listing = list_folder(tmp_path / "in")
    assert [entry.key for entry in listing.entries] == ["a/1.png", "b/2.png", "broken.jpg"]
    assert dict(listing.skipped) == {
        "a/up": "a link to a folder above it",
        "c": "cannot be looked at (Too many levels of symbolic links)",
        "nothing": "cannot be looked at (No such file or directory)",
    }


def test_a_store_inside_the_input_is_not_listed(tmp_path: Path) -> None:
    touch(tmp_path / "1.png")
    touch(tmp_path / "codes.zarr/zarr.json", b"{}")
    touch(tmp_path / "codes.zarr/g4x4/c/0/0/0")
    listing = list_folder(tmp_path)
    assert [entry.key for entry in listing.entries] == ["1.png"]
    assert listing.skipped == [("codes.zarr", "a Zarr store")]


def test_special_files_and_foreign_names_are_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    touch(tmp_path / os.fsdecode(b"bad\xff.png"))
    assert list_folder(tmp_path).skipped == [
        ("bad\\xff.png", "its name is not UTF-8: rename it"),
        ("pipe", "not a regular file"),
        ("pipe.png", "not a regular file"),
    ]


def test_one_file_is_an_input_too(tmp_path: Path) -> None:
    listing = list_input(touch(tmp_path / "only.png"))
    assert [entry.key for entry in listing.entries] == ["only.png"]


def test_an_input_that_is_missing_or_has_no_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list_input(tmp_path / "nowhere")
    touch(tmp_path / "notes.txt", b"words")
    with pytest.raises(InputError, match="no images"):
        list_input(tmp_path)


def test_bytes_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.png", b"0123456789")
    assert read_bytes(str(path), None, 10) == b"0123456789"
    assert read_bytes(str(path), 3, 4) == b"3456"
    for arguments, reason in [
        ((str(path), None, 9), "changed"),
        ((str(path), 8, 4), "changed"),
        ((str(tmp_path / "b.png"), None, 9), "missing"),
        ((str(tmp_path), None, 9), "unreadable"),
    ]:
        with pytest.raises(ImageError) as caught:
            read_bytes(*arguments)
        assert caught.value.reason == reason
