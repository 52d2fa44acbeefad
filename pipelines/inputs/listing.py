"""Listing an input: every image in a folder, a file or an archive, as one sorted table."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ops.config import Registry, UserError
from ops.files import NotRegularError
from ops.images import MAGIC_LENGTH, ImageError, has_image_suffix, looks_like_image
from ops.text import is_utf8, printable
from ops.transient_errors import retried
from pipelines.inputs.archives import (
    ArchiveError,
    NoImagesError,
    archive_etag,
    archive_members,
    format_address,
    is_archive,
)
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.packed_files import reason_packed
from pipelines.inputs.reading import Entry, open_image_file

BATCH = 65536  # entries kept as Python objects before they become columns
MISSING = "missing"  # the etag of a broken link: its row will have the status "missing"
NOT_REGULAR = "not a regular file"
NOT_UTF8 = "its name is not UTF-8: rename it"

#: The fields of Entry as columns.
ENTRY_SCHEMA = pa.schema(
    [
        # Large strings: those of ten million images exceed the two gigabytes of plain ones.
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.large_string(), nullable=False),
        pa.field("label_name", pa.large_string()),
    ]
)

LabelOf = Callable[[str, str | None], str | None]


class InputError(UserError):
    """An input that cannot be listed."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What an input holds: a table of ENTRY_SCHEMA sorted by key, then uri, then offset."""

    table: pa.Table
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    unread: list[str] = field(default_factory=list)  # folders and archives not listed completely
    unused: list[tuple[str, str]] = field(default_factory=list)  # (archive, what else it holds)

    @property
    def entries(self) -> list[Entry]:
        """The table as objects; meant for a few thousand images at most."""
        return [Entry(**line) for line in self.table.to_pylist()]


class ListingBuilder:
    """Collects entries in any order, in columns, and makes a Listing of them."""

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []
        self.unread: list[str] = []
        self.unused: list[tuple[str, str]] = []
        self._entries: list[Entry] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, entry: Entry) -> None:
        """Add an image."""
        self._entries.append(entry)
        if len(self._entries) == BATCH:
            self._flush()

    def skip(self, key: str, reason: str) -> None:
        """Add a file or folder that is not listed."""
        self.skipped.append((_printable(key), reason))

    def mark_unread(self, key: str, reason: str) -> None:
        """Add a folder or archive that could not be listed completely."""
        self.unread.append(_printable(key))
        self.skip(key, reason)

    def add_unused(self, key: str, what: str) -> None:
        """Add what an archive holds apart from its images, such as the number of captions."""
        self.unused.append((_printable(key), what))

    def listing(self) -> Listing:
        """Everything added so far."""
        self._flush()
        table = pa.Table.from_batches(self._batches, ENTRY_SCHEMA)
        order = [(name, "ascending") for name in ("key", "uri", "offset")]
        return Listing(
            table.sort_by(order), sorted(self.skipped), sorted(self.unread), sorted(self.unused)
        )

    def _flush(self) -> None:
        columns = [
            pa.array([getattr(entry, column.name) for entry in self._entries], column.type)
            for column in ENTRY_SCHEMA
        ]
        self._batches.append(pa.record_batch(columns, schema=ENTRY_SCHEMA))
        self._entries.clear()


#: Name -> function from an image's key and the class that its archive gives to its class.
LABELS: Registry[LabelOf] = Registry("labels")


@LABELS.register("none")
def no_label(key: str, field: str | None) -> str | None:
    """Images have no classes."""
    return None


@LABELS.register("first")
def first_folder(key: str, field: str | None) -> str | None:
    """The first folder below the input; None for an image directly in the input."""
    return key.partition("/")[0] if "/" in key else None


@LABELS.register("last")
def last_folder(key: str, field: str | None) -> str | None:
    """The folder the image is in, as its path below the input; None directly in the input."""
    return key.rpartition("/")[0] or None


@LABELS.register("field")
def archive_field(key: str, field: str | None) -> str | None:
    """What the archive gives: the field `cls` of a tar sample, the column `label` of a table."""
    return field


#: Name -> function from an input's path and a name of LABELS to its Listing.
READERS: Registry[Callable[[Path, str], Listing]] = Registry("reader")


@READERS.register("folder")
def list_folder(root: Path, labels: str = "none") -> Listing:
    """The images in a folder and all folders below it, or the one file `root`; links are followed.

    An image is a file with an image's suffix or an image's first bytes, or a member of a tar file
    or Parquet table. Other files are skipped, and so are names that start with a dot. Raises
    InputError if `root` does not exist or cannot be read.
    """
    root = _existing(root)
    builder = ListingBuilder()
    if root.is_dir():
        _add_folder(root, LABELS[labels], builder)
    else:
        _add_file(root, root.name, LABELS[labels], builder)
    return builder.listing()


@READERS.register("archive")
def list_archive(path: Path, labels: str = "none") -> Listing:
    """The images in one tar file or Parquet table; their keys are their names in it.

    Raises InputError if it does not exist.
    """
    path = _existing(path)
    builder = ListingBuilder()
    _add_archive(str(path), "", LABELS[labels], builder)
    return builder.listing()


def label_lines(listing: Listing, labels: str) -> list[str]:
    """A warning where images have no class although `labels`, a name of LABELS, asks for one."""
    lacking = listing.table["label_name"].null_count
    if labels == "none" or not lacking:
        return []
    return [
        f"warning: --labels {labels}: {lacking:,} of {len(listing.table):,} images have no class"
    ]


def list_input(path: Path, labels: str = "none") -> Listing:
    """The listing of an input by the reader that fits; raises InputError if it has no images."""
    one_archive = is_archive(path.name) and not os.path.isdir(path)
    listing = READERS["archive" if one_archive else "folder"](path, labels)
    if not len(listing.table):
        why = "".join(
            f" {key}: {reason}." for key, reason in (listing.skipped + listing.unused)[:1]
        )
        raise InputError(
            f"{printable(path)} holds no images: none of its files looks like one.{why}"
        )
    return listing


def _existing(path: Path) -> Path:
    """An input's absolute path, checked."""
    path = Path(os.path.abspath(path))
    shown = printable(path)
    if not is_utf8(str(path)):
        raise InputError(f"{shown}: this path is not UTF-8. Rename it.")
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise InputError(
            f"{shown} does not exist. Name a folder of images, one image, a tar file of images or "
            "a Parquet table with them."
        ) from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from None
    return path


# --- folders


def _add_folder(root: Path, label_of: LabelOf, builder: ListingBuilder) -> None:
    """Add every file below `root`; a link to a folder that contains it is not followed."""
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while waiting:
        folder, key, parents = waiting.pop()
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            reason = _reason_not_entered(folder, key, identity in parents)
            if reason is not None:
                builder.skip(key, reason)
                continue
            inside = parents | {identity}
            # An iterator: as a list, a folder of a million files would take a gigabyte.
            with os.scandir(folder) as entries:
                for entry in entries:
                    below = f"{key}/{entry.name}" if key else entry.name
                    if _is_folder(entry):
                        waiting.append((entry.path, below, inside))
                    elif is_archive(entry.name) and _is_listed_file(entry, below):
                        _add_archive(entry.path, below, label_of, builder)
                    else:
                        _add_file(entry, below, label_of, builder)
        except OSError as error:
            if not key:
                raise InputError(f"{printable(root)} cannot be read: {error.strerror}.") from None
            builder.mark_unread(key, f"a folder that cannot be read ({error.strerror})")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links
        return False


def _reason_not_entered(folder: str, key: str, is_parent: bool) -> str | None:
    if not key:
        return None
    if os.path.basename(folder).startswith("."):
        return "hidden folder"
    if is_parent:
        return "a link to a folder above it"
    return "a Zarr store" if os.path.lexists(os.path.join(folder, "zarr.json")) else None


# --- archives


def _add_archive(path: str, key: str, label_of: LabelOf, builder: ListingBuilder) -> None:
    """Add an archive's images; classes come from the folders of the archive and in it."""
    folder = key.rpartition("/")[0]
    shown = key or os.path.basename(path)
    log = MemberLog()
    try:
        etag = archive_etag(path)
        for member in archive_members(path, log, with_labels=label_of is archive_field):
            member_key = f"{key}/{member.name}" if key else member.name
            if not is_utf8(member.name):
                builder.skip(member_key, NOT_UTF8)
                continue
            label = label_of(f"{folder}/{member.name}".lstrip("/"), member.label)
            uri = format_address(path, member.place)
            builder.add(Entry(member_key, uri, member.place, member.size, etag, label))
    except NotRegularError:
        builder.skip(shown, NOT_REGULAR)
    except NoImagesError as error:
        builder.skip(shown, str(error))
    except ArchiveError as error:
        builder.mark_unread(shown, f"cannot be read to its end: {error}")
    except OSError as error:
        builder.mark_unread(shown, f"cannot be read to its end: {error.strerror or error}")
    for name, reason in log.skipped:
        builder.skip(f"{key}/{name}" if key else name, reason)
    for line in log.lines():
        builder.add_unused(shown, line)


def _is_listed_file(entry: os.DirEntry[str], key: str) -> bool:
    try:
        return entry.is_file() and _reason_by_name(entry.name, key) is None
    except OSError:
        return False


# --- files


def _add_file(
    file: os.DirEntry[str] | Path, key: str, label_of: LabelOf, builder: ListingBuilder
) -> None:
    """Add one file: as an entry, or as skipped with the reason."""
    reason: str | None = None
    size, etag = 0, MISSING
    try:
        status = retried(file.stat, os.fspath(file))
    except OSError as error:
        reason = _reason_without_status(file, error)
    else:
        size, etag = status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
        if not stat.S_ISREG(status.st_mode):
            reason = NOT_REGULAR
    reason = _reason_by_name(file.name, key) or reason or _reason_by_content(file)
    if reason is None:
        builder.add(Entry(key, os.fspath(file), None, size, etag, label_of(key, None)))
    else:
        builder.skip(key, reason)


def _reason_without_status(file: os.DirEntry[str] | Path, error: OSError) -> str | None:
    """None for a file with an image's suffix that is there: its row will name the error."""
    if isinstance(error, FileNotFoundError) and not file.is_symlink():
        return "removed while the folder was listed"
    return None if has_image_suffix(file.name) else f"cannot be examined ({error.strerror})"


def _reason_by_name(name: str, key: str) -> str | None:
    if name.startswith("."):
        return "hidden file"
    return None if is_utf8(key) else NOT_UTF8


def _reason_by_content(file: os.DirEntry[str] | Path) -> str | None:
    if has_image_suffix(file.name):
        return None
    try:
        with open_image_file(os.fspath(file)) as opened:
            head = opened.read(MAGIC_LENGTH)
    except (ImageError, OSError) as error:
        return f"neither named like an image nor readable ({error})"
    if looks_like_image(head):
        return None
    return reason_packed(head) or "neither named nor starting like an image"


def _printable(key: str) -> str:
    """`key` with bytes that are not UTF-8 written as escapes."""
    return key.encode(errors="surrogateescape").decode(errors="backslashreplace")
