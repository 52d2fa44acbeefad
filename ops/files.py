"""Opening regular files, atomic writes, durable links, file locks and content hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import filecmp
import hashlib
import io
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ops import disk
from ops.config import UserError
from ops.disk_errors import no_links

MAX_JSON_BYTES = 256 << 20
UNFINISHED_SECONDS = 1.0  # in which a small file that is being written is complete


class LockedError(UserError):
    """Another process holds the lock."""


class NotRegularError(UserError):
    """A folder, pipe, socket or device where a file was expected."""


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> io.BufferedReader:
    """Open a regular file for reading, without waiting for a writer where it is a pipe.

    Raises NotRegularError for a folder, pipe, socket or device, and where `follow` is False for a
    symbolic link; OSError if the file is missing or cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits until something writes to it.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        # A socket; a device without a driver; a link that is not to be followed.
        if error.errno in (errno.ENXIO, errno.ENODEV) or (
            error.errno == errno.ELOOP and not follow
        ):
            raise _not_regular(path) from None
        raise
    except ValueError:  # a name with a NUL, or with characters that names of files cannot have
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def _not_regular(path: str | os.PathLike[str]) -> NotRegularError:
    return NotRegularError(f"{os.fspath(path)} is a {_kind(path)}. A regular file is needed there.")


def _kind(path: str | os.PathLike[str]) -> str:
    return "symbolic link" if os.path.islink(path) else "folder, pipe, socket or device"


def special_files(folder: Path, *, depth: int, not_into: str = "") -> Iterator[tuple[Path, str]]:
    """(path, what it is) of everything below `folder` but regular files and folders.

    Folders are opened without following links; `folder` itself may be a link. Those named
    `not_into` are not entered, and those more than `depth` levels down are listed. What disappears
    meanwhile is left out; raises OSError for a folder that cannot be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    yield from _special_files(folder, descriptor, depth, not_into)


def _special_files(
    folder: Path, descriptor: int, depth: int, not_into: str
) -> Iterator[tuple[Path, str]]:
    """special_files of an open folder, which is closed in the end."""
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.is_symlink():
                    yield path, "a symbolic link"
                elif not entry.is_dir(follow_symlinks=False):
                    if not entry.is_file(follow_symlinks=False) and os.path.lexists(path):
                        yield path, "a pipe, socket or device"
                elif not depth:
                    yield path, "a folder nested too deeply"
                elif entry.name != not_into:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    with contextlib.suppress(FileNotFoundError):
                        child = os.open(entry.name, flags, dir_fd=descriptor)
                        yield from _special_files(path, child, depth - 1, not_into)
    finally:
        os.close(descriptor)


def fsync_path(path: Path) -> None:
    """Flush one file, or one folder's directory entries, to the disk."""
    disk.disk.fsync(path)


def make_folders(path: Path) -> None:
    """Make a folder and its missing parents, and flush each one's directory entry."""
    if path.is_dir():
        return
    make_folders(path.parent)
    with contextlib.suppress(FileExistsError):  # another process made it meanwhile
        disk.disk.make_folder(path)
    fsync_path(path.parent)


def write_temporary(path: Path, data: bytes) -> Path:
    """Write and flush `data` under a unique name next to `path`; returns that name."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with disk.disk.create(temporary) as file:
            file.write(data)
        fsync_path(temporary)
    except OSError:
        with contextlib.suppress(OSError):  # the first error, a full disk say, is the one to raise
            disk.disk.unlink(temporary)
        raise
    return temporary


def link_once(temporary: Path, path: Path) -> bool:
    """Link the flushed file `temporary` to `path` unless that name is taken; then remove it.

    True if `path` then has the content of `temporary`, even if the link call failed: some network
    file systems make the link and report failure. Where a file system has no links, the file is
    created exclusively instead, see create_without_link. The folder's directory entries are flushed
    either way. Raises OSError if `path` does not exist in the end.
    """
    try:
        try:
            disk.disk.link(temporary, path)
        except OSError as error:
            if no_links(error):
                create_without_link(temporary.read_bytes(), path)
            elif not path.exists():
                raise
        same = filecmp.cmp(temporary, path, shallow=False)
    finally:
        disk.disk.unlink(temporary)
    fsync_path(path.parent)
    return same


def create_without_link(data: bytes, path: Path) -> None:
    """Create a file exclusively and write `data`, flushed, unless there is one already.

    Readers may see the first part of it for a moment, and a killed writer leaves that. Such a first
    part of the same data that does not grow is replaced: by a new file, so that a writer that goes
    on in spite of that writes into the removed one.
    """
    if _is_unfinished(path, data):
        time.sleep(UNFINISHED_SECONDS)
        if _is_unfinished(path, data):
            disk.disk.unlink(path)
    try:
        file = disk.disk.create(path)
    except FileExistsError:
        return
    try:
        with file:
            file.write(data)
        fsync_path(path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to raise
            disk.disk.unlink(path)
        raise


def _is_unfinished(path: Path, data: bytes) -> bool:
    """Whether there is a file that has a first part of `data`, but not all."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return False
    return len(found) < len(data) and data.startswith(found)


def fsync_tree(path: Path) -> None:
    """Flush a file, or a folder and everything below it, children first."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            fsync_tree(child)
    fsync_path(path)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name next to `path` for a file or folder that becomes `path` on success.

    The result is flushed and renamed, so readers see either the old content or the complete new
    one. A folder replaces an older one of the same name. On an error the temporary is removed and
    `path` stays as it was; a killed process leaves `NAME.XXXXXXXX.partial`.
    """
    path = Path(path)
    make_folders(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        fsync_tree(partial)
        if partial.is_dir() and path.is_dir():
            _swap_folders(partial, path)
        else:
            disk.disk.replace(partial, path)
        fsync_path(path.parent)
    finally:
        _remove(partial)


def _swap_folders(new: Path, old: Path) -> None:
    # rename() cannot replace a folder that is not empty, so the old one is renamed first.
    temporary = old.with_name(f"{old.name}.{uuid.uuid4().hex[:8]}.partial")
    disk.disk.replace(old, temporary)
    disk.disk.replace(new, old)
    shutil.rmtree(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def json_bytes(data: Any) -> bytes:
    """`data` as indented JSON, UTF-8, with a final newline."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically."""
    write_bytes(path, json_bytes(data))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a file, atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def read_json(path: Path, *, follow: bool = True) -> Any:
    """The content of a JSON file; `follow` as in open_regular, which tells what that raises.

    Raises ValueError where the file has more than MAX_JSON_BYTES or its content is no JSON.
    """
    with open_regular(path, follow=follow) as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1))


def parse_json(data: bytes) -> Any:
    """`data` as JSON; ValueError where it is none, too long, too deep, or its text is no Unicode.

    NaN and infinities are not JSON.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
    try:
        found = json.loads(data, parse_constant=_no_constant)
        if b"\\u" in data:  # an escaped lone surrogate can be neither printed nor written
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"it contains {name}")


def json_hash(data: Any) -> str:
    """SHA-256, in hex, of `data` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256, in hex, of a file's content; raises as open_regular does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an flock on file `path`, created if missing; raises LockedError if it is taken.

    Raises NotRegularError where the path is anything but a regular file.
    """
    make_folders(path.parent)
    # No link is followed, which could make a file elsewhere, and no pipe is waited for.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
            raise _not_regular(path) from None
        raise
    with os.fdopen(descriptor, "rb+", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_regular(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _locked(path) from None
        if not _is_open_as(descriptor, path):  # its holder has removed it since it was opened
            raise _locked(path)
        yield


@contextlib.contextmanager
def waited_lock(path: Path) -> Iterator[None]:
    """Wait for the flock on file `path`, created if missing, and hold it."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _locked(path: Path) -> LockedError:
    return LockedError(f"{path} is held by another process. Wait for it to end, or stop it.")


def _is_open_as(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
