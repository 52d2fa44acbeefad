"""Listing an input: every image in folders, files, archives and lists, as one sorted table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from ops.config import Registry
from ops.images import MAGIC_LENGTH, ImageError, has_image_suffix, looks_like_image
from ops.object_paths import ObjectPath
from ops.text import is_utf8, printable
from ops.transient_errors import retried
from ops.web_paths import SourcePath
from pipelines.inputs.archives import format_addresses, is_archive
from pipelines.inputs.entries import ENTRY_SCHEMA, MISSING, Listing, ListingBuilder
from pipelines.inputs.fields import Fields
from pipelines.inputs.members import (
    NOT_REGULAR,
    NOT_UTF8,
    MemberCache,
    Members,
    list_members,
)
from pipelines.inputs.packed_files import reason_packed
from pipelines.inputs.parquet import is_table
from pipelines.inputs.path_lists import add_path_list, is_path_list
from pipelines.inputs.patterns import InputError, Source, input_sources
from pipelines.inputs.reading import Entry, read_head
from pipelines.inputs.remote_folders import (
    RemoteFile,
    hidden_folder,
    is_remote_folder,
    remote_files,
    zarr_folder,
)
from pipelines.inputs.source_files import FileStatus, disk_status, recent_status, status_of
from pipelines.inputs.thread_map import Bar, map_in_threads

T = TypeVar("T")

EMPTY = pa.scalar("", pa.large_string())
THREADS = 8  # that list archives: they wait for the disk
HEAD_THREADS = 16  # that read the beginnings of remote files

LabelOf = Callable[[str, str | None], str | None]


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


def label_lines(listing: Listing, labels: str) -> list[str]:
    """A warning where images have no class although `labels`, a name of LABELS, asks for one."""
    lacking = listing.table["label_name"].null_count
    if labels == "none" or not lacking:
        return []
    return [
        f"warning: --labels {labels}: {lacking:,} of {len(listing.table):,} images have no class"
    ]


def list_input(
    inputs: SourcePath | Sequence[SourcePath],
    labels: str = "none",
    fields: Fields | None = None,
    cache: MemberCache | None = None,
) -> Listing:
    """What list_sources finds; raises InputError where that is no image."""
    listing = list_sources(inputs, labels, fields, cache)
    if not len(listing.table):
        shown = ", ".join(map(str, inputs if isinstance(inputs, Sequence) else [inputs]))
        why = "".join(
            f" {key}: {reason}." for key, reason in (listing.skipped + listing.unused)[:1]
        )
        raise InputError(
            f"{printable(shown)} holds no images: none of its files looks like one.{why}"
        )
    return listing


def list_sources(
    inputs: SourcePath | Sequence[SourcePath],
    labels: str = "none",
    fields: Fields | None = None,
    cache: MemberCache | None = None,
) -> Listing:
    """Every image in some folders, files, archives and lists of paths: see input_sources.

    In a folder and all folders below it, an image is a file with an image's suffix or an image's
    first bytes, or a member of a tar file or Parquet table. Links are followed. A prefix of an
    object store and a folder of a hub are folders. Other files are
    skipped, and so are names that start with a dot. A list of paths is read where it is named
    itself, never where a folder has one. `labels` is a name of LABELS. Archives that `cache` has
    are not listed again. Raises InputError for an input that does not exist or cannot be read.
    """
    fields = replace(fields or Fields(), labels=labels == "field")
    walk = _Walk(LABELS[labels], fields, cache)
    for source in input_sources(inputs):
        walk.add(source)
    return walk.listing()


def is_source_folder(path: SourcePath) -> bool:
    """Whether an input is a folder and no file; InputError where it does not exist."""
    shown = printable(path)
    missing = InputError(
        f"{shown} does not exist. Name a folder of images, one image, a tar file of images, a "
        "Parquet table with them or a list of their paths."
    )
    if isinstance(path, Path):
        return _is_folder_of_disk(path, shown, missing)
    try:
        if not isinstance(path, ObjectPath) or path.key:
            with contextlib.suppress(FileNotFoundError):
                return not status_of(str(path)).is_regular
        if is_remote_folder(path):
            return True
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from None
    raise missing


def _is_folder_of_disk(path: Path, shown: str, missing: InputError) -> bool:
    if not is_utf8(str(path)):
        raise InputError(f"{shown}: this path is not UTF-8. Rename it.")
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise missing from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from None
    return path.is_dir()


class _Walk:
    """Lists sources one after the other; archives at the end, several at a time."""

    def __init__(self, label_of: LabelOf, fields: Fields, cache: MemberCache | None) -> None:
        self._label_of, self._fields, self._cache = label_of, fields, cache
        self._builder = ListingBuilder()
        self._archives: list[tuple[str, str, FileStatus | None]] = []  # path, key, status

    def add(self, source: Source) -> None:
        path, key = source.path, source.key
        if is_source_folder(path):
            if isinstance(path, Path):
                self._add_folder(path, key)
            else:
                self._add_remote_folder(path, key)
        elif is_path_list(path, self._fields):
            add_path_list(path, key, self._label_of, self._fields, self._builder)
        elif is_archive(path.name):
            self._archives.append((str(path), key, None))
        elif isinstance(path, Path):
            self._add_file(path, key or path.name)
        else:
            name = key or path.name
            file = RemoteFile(name, str(path), recent_status(str(path)))
            self._add_by_content(self._add_remote([file], ""))

    def listing(self) -> Listing:
        """Everything added."""
        self._add_archives()
        return self._builder.listing()

    # --- folders

    def _add_folder(self, root: Path, prefix: str) -> None:
        """Add every file below `root`; a link to a folder that contains it is not followed."""
        waiting: list[tuple[str, str, frozenset[tuple[int, int]]]]
        waiting = [(str(root), prefix, frozenset())]
        while waiting:
            folder, key, parents = waiting.pop()
            try:
                status = os.stat(folder)
                identity = (status.st_dev, status.st_ino)
                reason = _reason_not_entered(folder, identity in parents) if parents else None
                if reason is not None:
                    self._builder.skip(key, reason)
                    continue
                inside = parents | {identity}
                # An iterator: as a list, a folder of a million files would take a gigabyte.
                with os.scandir(folder) as entries:
                    for entry in entries:
                        below = f"{key}/{entry.name}" if key else entry.name
                        if _is_folder(entry):
                            waiting.append((entry.path, below, inside))
                        elif is_archive(entry.name) and _is_listed_file(entry, below):
                            self._archives.append((entry.path, below, None))
                        else:
                            self._add_file(entry, below)
            except OSError as error:
                if not parents:
                    raise InputError(
                        f"{printable(root)} cannot be read: {error.strerror}."
                    ) from None
                self._builder.mark_unread(key, f"a folder that cannot be read ({error.strerror})")

    # --- remote folders

    def _add_remote_folder(self, root: SourcePath, prefix: str) -> None:
        """Add every file below `root`, but for those of hidden folders and Zarr stores."""
        start = f"{prefix}/" if prefix else ""
        archives, hidden, stores = len(self._archives), set[str](), set[str]()

        def visible() -> Iterator[RemoteFile]:
            for file in remote_files(root):
                folder = hidden_folder(file.name)
                if folder is not None:
                    hidden.add(folder)
                    continue
                store = zarr_folder(file.name)
                if store is not None:
                    stores.add(store)
                yield file

        # What of a Zarr store was listed before its zarr.json is left out again.
        unsure = self._add_remote(visible(), start)
        inside = tuple(f"{start}{store}/" for store in stores)
        self._builder.leave_out(inside)
        kept = [each for each in self._archives[archives:] if not each[1].startswith(inside)]
        self._archives[archives:] = kept
        self._add_by_content([each for each in unsure if not each[0].startswith(inside)])
        for names, reason in ((hidden, "hidden folder"), (stores, "a Zarr store")):
            for name in names:
                self._builder.skip(f"{start}{name}", reason)

    def _add_remote(self, files: Iterable[RemoteFile], start: str) -> list[tuple[str, RemoteFile]]:
        """Add files, their keys after `start`; those (key, file) that are left to their content."""
        unsure = []
        for file in files:
            key = f"{start}{file.name}"
            reason = _reason_by_name(key.rpartition("/")[2], key)
            if reason is not None:
                self._builder.skip(key, reason)
            elif is_archive(file.name):
                self._archives.append((file.uri, key, file.status))
            elif has_image_suffix(file.name):
                self._add_remote_file(key, file)
            elif not file.status.size:
                self._builder.skip(key, "empty")
            else:
                unsure.append((key, file))
        return unsure

    def _add_by_content(self, files: Sequence[tuple[str, RemoteFile]]) -> None:
        """Add the files that begin like an image."""
        heads = map_in_threads(_reason_by_content, [(file.uri,) for _, file in files], HEAD_THREADS)
        for (key, file), reason in zip(files, heads, strict=True):
            if reason is None:
                self._add_remote_file(key, file)
            else:
                self._builder.skip(key, reason)

    def _add_remote_file(self, key: str, file: RemoteFile) -> None:
        size, etag, _ = file.status
        self._builder.add(Entry(key, file.uri, None, size, etag, self._label_of(key, None)))

    # --- archives

    def _add_archives(self) -> None:
        """Add the archives' images, each as soon as it and those before it have been listed."""
        paths = [(path, status) for path, _, status in self._archives]
        read = _errors_returned(partial(list_members, fields=self._fields, cache=self._cache))
        bar = Bar("listing archives", "archive", len(paths))
        listed = map_in_threads(read, paths, THREADS, bar)
        for (path, key, _), found in zip(self._archives, listed, strict=True):
            if isinstance(found, OSError):
                reason = f"cannot be read to its end: {found.strerror or found}"
                self._builder.mark_unread(key or os.path.basename(path), reason)
            else:
                self._add_members(path, key, *found)

    def _add_members(self, path: str, key: str, etag: str, members: Members) -> None:
        """Add an archive's images; classes come from the folders of the archive and in it."""
        shown, table = key or os.path.basename(path), members.table
        column = self._fields.image_column if is_table(path) else None
        prefix = pa.scalar(f"{key}/" if key else "", pa.large_string())
        keys = pc.binary_join_element_wise(prefix, table["name"], EMPTY)
        self._builder.add_table(
            pa.table(
                {
                    "key": keys,
                    "uri": format_addresses(path, table["place"], column),
                    "offset": table["place"],
                    "size": table["size"],
                    "etag": pa.repeat(pa.scalar(etag, pa.large_string()), len(table)),
                    "label_name": self._labels(key, table),
                    "caption": table["caption"],
                    "carried": table["carried"],
                },
                ENTRY_SCHEMA,
            )
        )
        if members.defect is not None and members.complete:
            self._builder.skip(shown, members.defect)
        elif members.defect is not None:
            self._builder.mark_unread(shown, members.defect)
        for name, reason in members.skipped:
            self._builder.skip(f"{key}/{name}" if key else name, reason)
        for line in members.notes:
            self._builder.add_unused(shown, line)

    def _labels(self, key: str, table: pa.Table) -> pa.ChunkedArray:
        if self._label_of in (archive_field, no_label):
            return table["label"]
        folder = key.rpartition("/")[0]
        names = (f"{folder}/{name}".lstrip("/") for name in table["name"].to_pylist())
        labels = [self._label_of(name, None) for name in names]
        return pa.chunked_array([pa.array(labels, pa.large_string())])

    # --- files

    def _add_file(self, file: os.DirEntry[str] | Path, key: str) -> None:
        """Add one file: as an entry, or as skipped with the reason."""
        reason: str | None = None
        size, etag = 0, MISSING
        try:
            status = retried(file.stat, os.fspath(file))
        except OSError as error:
            reason = _reason_without_status(file, error)
        else:
            size, etag, is_regular = disk_status(status)
            reason = None if is_regular else NOT_REGULAR
        reason = _reason_by_name(file.name, key) or reason or _reason_by_content(os.fspath(file))
        if reason is None:
            label = self._label_of(key, None)
            self._builder.add(Entry(key, os.fspath(file), None, size, etag, label))
        else:
            self._builder.skip(key, reason)


def _errors_returned(read: Callable[..., T]) -> Callable[..., T | OSError]:
    """`read`, but an error of the disk becomes its result: the other archives are listed."""

    def read_or_error(path: str, status: FileStatus | None) -> T | OSError:
        try:
            return read(path, status)
        except OSError as error:
            return error

    return read_or_error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links
        return False


def _reason_not_entered(folder: str, is_parent: bool) -> str | None:
    if os.path.basename(folder).startswith("."):
        return "hidden folder"
    if is_parent:
        return "a link to a folder above it"
    return "a Zarr store" if os.path.lexists(os.path.join(folder, "zarr.json")) else None


def _is_listed_file(entry: os.DirEntry[str], key: str) -> bool:
    try:
        return entry.is_file() and _reason_by_name(entry.name, key) is None
    except OSError:
        return False


def _reason_without_status(file: os.DirEntry[str] | Path, error: OSError) -> str | None:
    """None for a file with an image's suffix that is there: its row will name the error."""
    if isinstance(error, FileNotFoundError) and not file.is_symlink():
        return "removed while the folder was listed"
    return None if has_image_suffix(file.name) else f"cannot be examined ({error.strerror})"


def _reason_by_name(name: str, key: str) -> str | None:
    if name.startswith("."):
        return "hidden file"
    return None if is_utf8(key) else NOT_UTF8


def _reason_by_content(file: str) -> str | None:
    if has_image_suffix(file):
        return None
    try:
        head = read_head(file, MAGIC_LENGTH)
    except (ImageError, OSError) as error:
        return f"neither named like an image nor readable ({error})"
    if looks_like_image(head):
        return None
    return reason_packed(head) or "neither named nor starting like an image"
