"""Where images come from: a reader lists an input once, and any process can then read its bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ops.config import Registry, UserError
from ops.images import MAGIC_LENGTH, SUFFIXES, ImageError, looks_like_image


class InputError(UserError):
    """An input that cannot be listed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an input: its stable name and where its bytes lie."""

    key: str  # the path below the input, with "/" between folders
    uri: str  # the file to open
    offset: int | None  # where in the file the bytes start; None: the whole file
    size: int  # bytes; 0 when the file could not be found
    etag: str  # changes when the content does
    label_name: str | None  # the class: the first folder below the input


@dataclass(slots=True)
class Listing:
    """What an input holds, sorted by key."""

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (key, why it is no input)


#: Name -> function from an input's path to its Listing.
READERS: Registry[Callable[[Path], Listing]] = Registry("reader")


@READERS.register("folder")
def list_folder(root: Path) -> Listing:
    """The images in a folder and all below it, or the one file `root`; links are followed.

    An image is a file with an image's name or an image's first bytes; others are skipped, and so
    is what starts with a dot. Raises InputError where `root` does not exist.
    """
    root = Path(os.path.abspath(root))
    if not root.exists():
        raise InputError(f"{root} does not exist. Name a folder of images, or one image.")
    listing = Listing()
    paths = [root] if root.is_file() else _files_below(root, listing)
    base = root.parent if root.is_file() else root
    for path in paths:
        key = path.relative_to(base).as_posix()
        reason = _why_skipped(path, key)
        if reason is None:
            listing.entries.append(_entry(path, key))
        else:
            listing.skipped.append((_printable(key), reason))
    listing.entries.sort(key=lambda entry: entry.key)
    listing.skipped.sort()
    return listing


def list_input(path: Path) -> Listing:
    """The listing of an input, by the reader that fits; raises InputError when it has no images."""
    listing = READERS["folder"](path)
    if not listing.entries:
        raise InputError(f"{path} holds no images: none of its files looks like one.")
    return listing


def read_bytes(uri: str, offset: int | None, size: int) -> bytes:
    """The bytes of one planned image; ImageError where they are gone, unreadable or changed."""
    try:
        with open(uri, "rb") as file:
            if offset is not None:
                file.seek(offset)
            data = file.read() if offset is None else file.read(size)
    except FileNotFoundError:
        raise ImageError("missing", "no such file, or a link that leads nowhere") from None
    except OSError as error:
        raise ImageError("unreadable", str(error.strerror or error)) from None
    if len(data) != size:
        found = f"{len(data)} bytes, planned with {size}"
        raise ImageError("changed", f"{found}; run encode again to plan it anew")
    return data


def _files_below(root: Path, listing: Listing) -> Iterator[Path]:
    """Every file below `root`; a link that leads back to a folder above it is not entered."""
    above: dict[str, frozenset[tuple[int, int]]] = {str(root): frozenset([_identity(root)])}
    for folder, folders, files in os.walk(root, followlinks=True):
        entered = []
        for name in sorted(folders):
            path = Path(folder, name)
            reason = _why_not_entered(path, above[folder])
            if reason is None:
                entered.append(name)
                above[str(path)] = above[folder] | {_identity(path)}
            else:
                listing.skipped.append((_printable(path.relative_to(root).as_posix()), reason))
        folders[:] = entered
        del above[folder]
        yield from (Path(folder, name) for name in files)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _why_not_entered(path: Path, above: frozenset[tuple[int, int]]) -> str | None:
    if path.name.startswith("."):
        return "hidden folder"
    if (path / "zarr.json").exists():
        return "a Zarr store"
    if _identity(path) in above:
        return "a link to a folder above it"
    return None


def _why_skipped(path: Path, key: str) -> str | None:
    if path.name.startswith("."):
        return "hidden file"
    if _printable(key) != key:
        return "its name is not UTF-8: rename it"
    if path.suffix.lower() in SUFFIXES:
        return None if path.is_file() or path.is_symlink() else "not a regular file"
    if not path.is_file():
        return "not a regular file"
    try:
        with open(path, "rb") as file:
            head = file.read(MAGIC_LENGTH)
    except OSError as error:
        return f"neither named like an image nor readable ({error.strerror})"
    return None if looks_like_image(head) else "neither named nor starting like an image"


def _printable(key: str) -> str:
    """`key` as it is, unless it has bytes that are not UTF-8: then those are written as escapes."""
    return os.fsencode(key).decode(errors="backslashreplace")


def _entry(path: Path, key: str) -> Entry:
    folder, _, _ = key.partition("/")
    label_name = folder if "/" in key else None
    try:
        status = path.stat()
    except OSError:  # a broken link: its row will say so
        return Entry(key, str(path), None, 0, "missing", label_name)
    etag = f"{status.st_size}-{status.st_mtime_ns}"
    return Entry(key, str(path), None, status.st_size, etag, label_name)
