"""Where images come from: a reader lists an input once, and any process can then read its bytes."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from ops.config import Registry, UserError
from ops.images import MAGIC_LENGTH, SUFFIXES, ImageError, looks_like_image
from pipelines.inputs.archives import (
    ArchiveError,
    NoImagesError,
    address,
    archive_etag,
    archive_members,
    is_archive,
    parse_address,
    read_member,
)

CHUNK = 65536  # entries that exist as Python objects at a time
MAX_BYTES = 1 << 30  # MAX_PIXELS uncompressed, twice over; larger files would only fill the memory
MISSING = "missing"  # the etag of a link that leads nowhere: its row will say so

ENTRY_SCHEMA = pa.schema(
    [
        # Large strings: those of some ten million images pass the two gigabytes of plain ones.
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.large_string(), nullable=False),
        pa.field("label_name", pa.large_string()),
    ]
)


class InputError(UserError):
    """An input that cannot be listed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an input: its stable name and where its bytes lie."""

    key: str  # the path below the input, with "/" between folders
    uri: (
        str  # the file to open; in an archive, that and the place: see pipelines/inputs/archives.py
    )
    offset: int | None  # the place in an archive; None: the whole file
    size: int  # bytes; 0 when the file could not be found, or a table must be read to know
    etag: str  # changes when the content does
    label_name: str | None  # the class, see LABELS


@dataclass(frozen=True, slots=True)
class Listing:
    """What an input holds: a table of ENTRY_SCHEMA sorted by key, then uri, then offset."""

    table: pa.Table
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (key, why it is no input)
    unread: list[str] = field(default_factory=list)  # folders whose images are not known

    @property
    def entries(self) -> list[Entry]:
        """The table as objects, for those who want a few thousand images at most."""
        return [Entry(**line) for line in self.table.to_pylist()]


class Gathering:
    """What becomes a Listing, entry by entry in any order, kept in columns."""

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []
        self.unread: list[str] = []
        self._entries: list[Entry] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)
        if len(self._entries) == CHUNK:
            self._flush()

    def skip(self, key: str, reason: str) -> None:
        self.skipped.append((_printable(key), reason))

    def listing(self) -> Listing:
        self._flush()
        table = pa.Table.from_batches(self._batches, ENTRY_SCHEMA)
        order = [(name, "ascending") for name in ("key", "uri", "offset")]
        return Listing(table.sort_by(order), sorted(self.skipped), sorted(self.unread))

    def _flush(self) -> None:
        columns = [
            pa.array([getattr(entry, column.name) for entry in self._entries], column.type)
            for column in ENTRY_SCHEMA
        ]
        self._batches.append(pa.record_batch(columns, schema=ENTRY_SCHEMA))
        self._entries.clear()


#: Name -> function from an image's key to its class.
LABELS: Registry[Callable[[str], str | None]] = Registry("labels")


@LABELS.register("none")
def no_label(key: str) -> str | None:
    """Images have no classes."""
    return None


@LABELS.register("first")
def first_folder(key: str) -> str | None:
    """The first folder below the input; None for an image right in the input."""
    return key.partition("/")[0] if "/" in key else None


@LABELS.register("last")
def last_folder(key: str) -> str | None:
    """The folder the image lies in, as its path below the input; None right in the input."""
    return key.rpartition("/")[0] or None


#: Name -> function from an input's path and a name of LABELS to its Listing.
READERS: Registry[Callable[[Path, str], Listing]] = Registry("reader")


@READERS.register("folder")
def list_folder(root: Path, labels: str = "none") -> Listing:
    """The images in a folder and all below it, or the one file `root`; links are followed.

    An image is a file with an image's name or an image's first bytes, or what a tar file or a
    Parquet table holds; others are skipped, and so is what starts with a dot. Raises InputError
    where `root` does not exist or cannot be read.
    """
    root = _existing(root)
    gathering = Gathering()
    if root.is_dir():
        _walk(root, LABELS[labels], gathering)
    else:
        _take(root, root.name, LABELS[labels], gathering)
    return gathering.listing()


@READERS.register("archive")
def list_archive(path: Path, labels: str = "none") -> Listing:
    """The images in one tar file or Parquet table, under their names in there.

    Raises InputError where it does not exist.
    """
    path = _existing(path)
    gathering = Gathering()
    _take_archive(str(path), "", LABELS[labels], gathering)
    return gathering.listing()


def _existing(path: Path) -> Path:
    """An input's absolute path, checked."""
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise InputError(
            f"{path} does not exist. Name a folder of images, one image, a tar file of images or a "
            "Parquet table with them."
        )
    if not _is_utf8(str(path)):
        raise InputError(f"{_printable(str(path))}: this path is not UTF-8. Rename it.")
    return path


def list_input(path: Path, labels: str = "none") -> Listing:
    """The listing of an input, by the reader that fits; raises InputError when it has no images."""
    one_archive = is_archive(path.name) and not path.is_dir()
    listing = READERS["archive" if one_archive else "folder"](path, labels)
    if not len(listing.table):
        why = "".join(f" {key}: {reason}." for key, reason in listing.skipped[:1])
        raise InputError(f"{path} holds no images: none of its files looks like one.{why}")
    return listing


def open_regular(uri: str) -> BinaryIO:
    """A file opened for reading; ImageError where it is gone, unreadable or no regular file."""
    try:
        # To open a pipe would otherwise wait for its other end, for ever.
        descriptor = os.open(uri, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ImageError("missing", "no such file, or a link that leads nowhere") from None
    except OSError as error:
        raise ImageError("unreadable", str(error.strerror or error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError("unreadable", "not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(uri: str, offset: int | None, size: int, etag: str | None = None) -> bytes:
    """The bytes of one planned image; ImageError where they are gone, unreadable or changed.

    Of an archive only `etag` tells that another file has taken its place.
    """
    if size > MAX_BYTES:
        raise ImageError("too large", f"{size:,} bytes; the limit is {MAX_BYTES:,}")
    place = None if offset is None else parse_address(uri)
    if place is not None:
        data = _read_member(place, etag)
        return _checked(data, size) if size else data
    with open_regular(uri) as file:
        try:
            file.seek(offset or 0)
            data = file.read(size + 1 if offset is None else size)  # 1 more shows that it grew
        except OSError as error:
            raise ImageError("unreadable", str(error.strerror or error)) from None
    return _checked(data, size)


def read_source(uri: str) -> bytes:
    """The bytes that lie at an entry's uri now, wherever that is; ImageError where none do."""
    place = parse_address(uri)
    if place is not None and not os.path.lexists(uri):
        return read_member(*place)
    with open_regular(uri) as file:
        return file.read(MAX_BYTES)


def read_entry(entry: Entry) -> Callable[[], bytes]:
    """A function that reads an image's bytes when they are wanted."""
    return functools.partial(read_bytes, entry.uri, entry.offset, entry.size, entry.etag)


def _read_member(place: tuple[str, int], etag: str | None) -> bytes:
    data = read_member(*place)
    if etag is not None and archive_etag(place[0]) != etag:
        raise ImageError("changed", f"{place[0]} is another file now; run again to plan anew")
    return data


def _checked(data: bytes, size: int) -> bytes:
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more bytes"
        raise ImageError("changed", f"{found}, planned with {size}; run encode again to plan anew")
    return data


def content_hash(data: bytes) -> str:
    """What tells one image file's content from another's: 32 hex digits."""
    return hashlib.sha256(data).hexdigest()[:32]


# --- folders


def _walk(root: Path, label_of: Callable[[str], str | None], gathering: Gathering) -> None:
    """Gather every file below `root`; a link that leads back to a folder above is not entered."""
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while waiting:
        folder, key, above = waiting.pop()
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            reason = _why_not_entered(folder, key, identity in above)
            if reason is not None:
                gathering.skip(key, reason)
                continue
            inside = above | {identity}
            # Not a list: a folder of a million files would be a gigabyte of entries.
            with os.scandir(folder) as entries:
                for entry in entries:
                    below = f"{key}/{entry.name}" if key else entry.name
                    if _is_folder(entry):
                        waiting.append((entry.path, below, inside))
                    elif is_archive(entry.name) and _is_fit_file(entry, below):
                        _take_archive(entry.path, below, label_of, gathering)
                    else:
                        _take(entry, below, label_of, gathering)
        except OSError as error:
            if not key:
                raise InputError(f"{root} cannot be read: {error.strerror}.") from None
            gathering.unread.append(_printable(key))
            gathering.skip(key, f"a folder that cannot be read ({error.strerror})")


def _take_archive(
    path: str, key: str, label_of: Callable[[str], str | None], gathering: Gathering
) -> None:
    """Gather what an archive holds; classes are those of the folders it and its members lie in."""
    folder = key.rpartition("/")[0]
    try:
        etag = archive_etag(path)
        for member in archive_members(path):
            if not _is_utf8(member.name):
                gathering.skip(f"{key}/{member.name}", "its name is not UTF-8: rename it")
                continue
            label = label_of(f"{folder}/{member.name}".removeprefix("/"))
            member_key = f"{key}/{member.name}".removeprefix("/")
            uri = address(path, member.place)
            gathering.add(Entry(member_key, uri, member.place, member.size, etag, label))
    except NoImagesError as error:
        gathering.skip(key or path, str(error))
    except (ArchiveError, OSError) as error:
        gathering.unread.append(_printable(key or path))
        gathering.skip(key or path, f"cannot be read to its end: {error}")


def _is_fit_file(entry: os.DirEntry[str], key: str) -> bool:
    try:
        return entry.is_file() and _why_unfit(entry.name, key) is None
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _why_not_entered(folder: str, key: str, is_above: bool) -> str | None:
    if not key:
        return None
    if os.path.basename(folder).startswith("."):
        return "hidden folder"
    if is_above:
        return "a link to a folder above it"
    return "a Zarr store" if os.path.lexists(os.path.join(folder, "zarr.json")) else None


def _take(
    file: os.DirEntry[str] | Path,
    key: str,
    label_of: Callable[[str], str | None],
    gathering: Gathering,
) -> None:
    """Gather one file: as an entry, or as skipped with the reason."""
    reason: str | None = None
    size, etag = 0, MISSING
    try:
        status = file.stat()
    except OSError as error:
        reason = _why_without_status(file, error)
    else:
        size, etag = status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
        if not stat.S_ISREG(status.st_mode):
            reason = "not a regular file"
    reason = _why_unfit(file.name, key) or reason or _why_no_image(file)
    if reason is None:
        gathering.add(Entry(key, os.fspath(file), None, size, etag, label_of(key)))
    else:
        gathering.skip(key, reason)


def _why_without_status(file: os.DirEntry[str] | Path, error: OSError) -> str | None:
    """None for what is named like an image and is there: its row will say what is wrong."""
    if isinstance(error, FileNotFoundError) and not file.is_symlink():
        return "gone again while the folder was listed"
    return None if _named_like_image(file.name) else f"cannot be looked at ({error.strerror})"


def _why_unfit(name: str, key: str) -> str | None:
    if name.startswith("."):
        return "hidden file"
    return None if _is_utf8(key) else "its name is not UTF-8: rename it"


def _why_no_image(file: os.DirEntry[str] | Path) -> str | None:
    if _named_like_image(file.name):
        return None
    try:
        with open_regular(os.fspath(file)) as opened:
            head = opened.read(MAGIC_LENGTH)
    except (ImageError, OSError) as error:
        return f"neither named like an image nor readable ({error})"
    return None if looks_like_image(head) else "neither named nor starting like an image"


def _named_like_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps other bytes of a name as lone surrogates
        return False
    return True


def _printable(key: str) -> str:
    """`key` as it is, unless it has bytes that are not UTF-8: then those are written as escapes."""
    return os.fsencode(key).decode(errors="backslashreplace")
