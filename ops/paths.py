"""Files on disks and objects in object stores, behind one small interface.

A path is a `pathlib.Path`, or an ObjectPath for `s3://`, `gs://` and `memory://`. On a disk these
functions are those of ops/files.py: what they write is flushed and appears whole. In an object
store a write is one PUT, which appears whole too, and exclusive creation is a conditional one.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ops import disk, object_store
from ops.config import UserError
from ops.disk_errors import no_links
from ops.files import (
    MAX_JSON_BYTES,
    atomic_path,
    file_hash,
    fsync_path,
    json_bytes,
    link_once,
    make_folders,
    open_regular,
    parse_json,
    write_bytes,
    write_temporary,
)
from ops.object_paths import (
    SCHEMES,
    AnyPath,
    ObjectPath,
    P,
    below,
    join,
    parent,
    parse_path,
    scheme_of,
)
from ops.object_store import ObjectStoreError, list_objects
from ops.storage_options import OPTIONS_VARIABLE, parse_options, storage_options

__all__ = [
    "OPTIONS_VARIABLE",
    "SCHEMES",
    "AnyPath",
    "ExclusiveCreateError",
    "FileInfo",
    "ObjectPath",
    "ObjectStoreError",
    "P",
    "below",
    "check_exclusive_create",
    "commit_once",
    "copy",
    "create_once",
    "exists",
    "file_info",
    "find_files",
    "flush",
    "flush_up",
    "hash_file",
    "holds",
    "holds_json",
    "is_folder",
    "join",
    "list_objects",
    "local_file",
    "make_folder",
    "matching",
    "move",
    "open_binary",
    "parent",
    "parse_options",
    "parse_path",
    "read_json_at",
    "read_range",
    "read_whole",
    "remove",
    "scheme_of",
    "storage_options",
    "write_json_if_changed",
    "write_staged",
    "write_whole",
]

HASH_BYTES = 8 << 20  # of a file in memory while it is hashed


class ExclusiveCreateError(UserError):
    """A place where two writers cannot be kept apart."""


class FileInfo(NamedTuple):
    """What is known of a file or object without reading it."""

    path: AnyPath
    size: int  # bytes
    etag: str  # changes when the content does: of a file its size and time


# --- reading


def open_binary(path: AnyPath, *, follow: bool = True) -> BinaryIO:
    """A file or object as a seekable binary file; `follow` as in files.open_regular.

    Raises FileNotFoundError where there is none, and of a local path what open_regular does.
    """
    if isinstance(path, ObjectPath):
        return object_store.open_object(path)
    return open_regular(path, follow=follow)


def read_whole(path: AnyPath, *, follow: bool = True) -> bytes:
    """The content of a file or object; raises what open_binary does."""
    if isinstance(path, ObjectPath):
        return object_store.read_object(path)
    with open_regular(path, follow=follow) as file:
        return file.read()


def read_range(path: AnyPath, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset` on: fewer where the file ends before."""
    if isinstance(path, ObjectPath):
        return object_store.read_object_range(path, offset, size)
    with open_regular(path) as file:
        file.seek(offset)
        return file.read(size)


def read_json_at(path: AnyPath, *, follow: bool = True) -> Any:
    """The content of a JSON file; ValueError where it is none or has more than MAX_JSON_BYTES."""
    with open_binary(path, follow=follow) as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1))


def hash_file(path: AnyPath) -> str:
    """SHA-256, in hex, of a file's content; raises what open_binary does."""
    if not isinstance(path, ObjectPath):
        return file_hash(path)
    digest = hashlib.sha256()
    with object_store.open_object(path) as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


# --- looking


def exists(path: AnyPath) -> bool:
    """Whether there is a file, folder or object of exactly this name."""
    if isinstance(path, ObjectPath):
        return object_store.find_object(path) is not None
    return path.exists()


def is_folder(path: AnyPath) -> bool:
    """Whether this is a folder, or any object lies below it."""
    return object_store.has_objects(path) if isinstance(path, ObjectPath) else path.is_dir()


def file_info(path: AnyPath) -> FileInfo | None:
    """Size and etag of a file or object; None where there is none."""
    if isinstance(path, ObjectPath):
        found = object_store.find_object(path)
        return None if found is None else FileInfo(path, found.size, found.etag)
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return FileInfo(path, state.st_size, f"{state.st_size}-{state.st_mtime_ns}")


def find_files(folder: AnyPath) -> Iterator[FileInfo]:
    """Every file or object below a folder or prefix, with size and etag, by path."""
    if isinstance(folder, ObjectPath):
        for found in list_objects(folder):
            yield FileInfo(found.path, found.size, found.etag)
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            info = file_info(path)
            if info is not None:
                yield info


def matching(folder: P, pattern: str) -> Iterator[P]:
    """What lies below `folder` and matches `pattern`, as Path.glob has it without `**`.

    In an object store these are objects alone, since it has no folders.
    """
    if not isinstance(folder, ObjectPath):
        yield from cast(Any, folder.glob(pattern))
        return
    parts = pattern.split("/")
    literal = [part for part in parts[:-1] if not set(part) & set("*?[")]
    known = parts[: len(literal)] == literal
    for found in list_objects(join(folder, *(literal if known else ()))):
        names = found.path.relative_to(folder).parts
        if len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts)):
            yield cast(Any, found.path)


# --- writing


def make_folder(path: AnyPath) -> None:
    """Make a folder and its parents, durably; an object store needs none."""
    if not isinstance(path, ObjectPath):
        make_folders(path)


def write_whole(path: AnyPath, data: bytes) -> None:
    """Write a file or object; readers see the old content or the new."""
    if isinstance(path, ObjectPath):
        object_store.write_object(path, data)
    else:
        write_bytes(path, data)


def create_once(path: AnyPath, data: bytes) -> bool:
    """Write a file or object unless there is one; True if it then has exactly this content.

    So writing the same twice is True twice: also where the first answer of a store was lost.
    """
    if isinstance(path, ObjectPath):
        return object_store.create_object(path, data)
    make_folders(path.parent)
    return link_once(write_temporary(path, data), path)


def write_staged(path: AnyPath, data: bytes) -> None:
    """Write a file or object, which appears whole; of a disk, its folder is still to be flushed."""
    if isinstance(path, ObjectPath):
        object_store.write_object(path, data)
    else:
        disk.disk.replace(write_temporary(path, data), path)


def commit_once(staging: AnyPath, path: AnyPath, data: bytes) -> bool:
    """create_once, once everything in the folder `staging` is flushed; a disk also writes there."""
    if isinstance(path, ObjectPath) or isinstance(staging, ObjectPath):
        return create_once(path, data)
    temporary = write_temporary(staging / path.name, data)
    fsync_path(staging)  # or a power cut could keep the file and lose what it names
    make_folders(path.parent)
    return link_once(temporary, path)


def move(source: AnyPath, target: AnyPath) -> None:
    """Give a file or object another name, in place of an older one of that name.

    Raises FileNotFoundError where there is no source. In an object store it is copied, then
    removed: a reader always finds one of the two.
    """
    if isinstance(source, ObjectPath) and isinstance(target, ObjectPath):
        object_store.copy_object(source, target)
        object_store.remove_object(source)
    else:
        disk.disk.replace(cast(Path, source), cast(Path, target))


def flush_up(folder: AnyPath, root: AnyPath) -> None:
    """Flush the directory entries of each folder of a disk from `folder` up to `root`.

    Always all of them: another process may have made one and been killed before flushing it.
    """
    while not isinstance(folder, ObjectPath):
        fsync_path(folder)
        if folder == root:
            return
        folder = folder.parent


def flush(folder: AnyPath) -> None:
    """Flush the directory entries of a folder of a disk."""
    if not isinstance(folder, ObjectPath):
        fsync_path(folder)


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file or object, between any two places; the target appears whole."""
    if isinstance(target, ObjectPath):
        if isinstance(source, ObjectPath) and source.parent.bucket == target.bucket:
            object_store.copy_object(source, target)
        elif isinstance(source, ObjectPath):
            object_store.write_object(target, object_store.read_object(source))
        else:
            object_store.write_object(target, source)
        return
    with atomic_path(target) as partial:
        if isinstance(source, ObjectPath):
            with open(partial, "xb") as file:
                object_store.download(source, file)
        else:
            shutil.copyfile(source, partial)


@contextlib.contextmanager
def local_file(path: AnyPath) -> Iterator[Path]:
    """A local path to write a file to that is, or in the end becomes, the file or object `path`."""
    if not isinstance(path, ObjectPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="smalti-") as folder:
        local = Path(folder) / path.name
        yield local
        object_store.write_object(path, local)


def remove(path: AnyPath) -> None:
    """Remove a file or object; no error where there is none."""
    if isinstance(path, ObjectPath):
        object_store.remove_object(path)
    else:
        disk.disk.unlink(path)


def holds(path: AnyPath, data: bytes) -> bool:
    """Whether a file or object exists and has exactly this content."""
    try:
        return read_whole(path) == data
    except FileNotFoundError:
        return False


def holds_json(path: AnyPath, data: object) -> bool:
    """Whether a file exists and is what files.json_bytes makes of `data`, but for the order of
    keys."""
    try:
        whole = read_whole(path)
        found = parse_json(whole)
    except (FileNotFoundError, ValueError):
        return False
    return bool(found == data) and json_bytes(found) == whole


def write_json_if_changed(path: AnyPath, data: object) -> None:
    """Write a JSON file unless it has this content already, so that it keeps its time."""
    if not holds_json(path, data):
        write_whole(path, json_bytes(data))


# --- the probe


def check_exclusive_create(folder: AnyPath) -> None:
    """Raise ExclusiveCreateError unless a second exclusive create below `folder` is refused.

    All that keeps two writers apart rests on it. Leaves nothing behind.
    """
    name = f"probe-{uuid.uuid4().hex}"
    if isinstance(folder, ObjectPath):
        path = folder / name
        try:
            refused = object_store.create_object(path, b"1") and not object_store.create_object(
                path, b"2"
            )
        finally:
            object_store.remove_object(path)
        if not refused:
            raise ExclusiveCreateError(
                f"{folder}: its store ignores If-None-Match, so two writers would overwrite each "
                "other. Use a store with conditional writes: Amazon S3, Google Cloud Storage, "
                "MinIO, Ceph from Squid on, Cloudflare R2."
            )
        return
    if not _refused_on_disk(folder, name):
        raise ExclusiveCreateError(
            f"{folder}: its file system makes the same name twice, so two writers would overwrite "
            "each other. Name a folder on another one, for instance on ext4, XFS or NFS."
        )


def _refused_on_disk(folder: Path, name: str) -> bool:
    source, target = folder / f"{name}.partial", folder / f"{name}-2.partial"
    try:
        source.touch(exist_ok=False)
        try:
            os.link(source, target)
        except OSError as error:
            if not no_links(error):
                raise
            target.touch(exist_ok=False)
            with contextlib.suppress(FileExistsError), io.FileIO(target, "x"):
                return False
            return True
        try:
            os.link(source, target)
        except OSError as error:
            return error.errno == errno.EEXIST
        return False
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
