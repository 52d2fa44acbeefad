"""One file of an input, on a disk, in an object store or at a server: its status and its bytes.

Files are named by text, as in a plan: an absolute path or a URI. What a remote file itself is to
blame for is an OSError, as on a disk; a network that fails is a TransientError.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

from ops.files import open_regular
from ops.object_paths import ObjectPath
from ops.object_store import ObjectInfo, ObjectStoreError, find_object, read_object_part
from ops.range_reader import RangeReader, ReadAhead, ReadRange
from ops.web_files import read_web_range, web_info
from ops.web_paths import WebPath, is_remote, parse_source

RECENT_SECONDS = 60.0  # for which the status of a remote file is taken to be what it was
MOST_RECENT = 4096  # statuses kept
BUFFER_BYTES = 64 << 10  # read at once of a remote file whose beginning is looked at


class FileStatus(NamedTuple):
    """What is known of a file without reading it."""

    size: int  # bytes
    etag: str  # changes when the content does; "" where it is not known
    is_regular: bool = True


class ChangedFileError(OSError):
    """A remote file that is another one than was listed."""


class PositionedFile(Protocol):
    """A file whose bytes are read at any offset."""

    size: int

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on: fewer where the file ends before."""

    def next_data(self, offset: int) -> int:
        """Where the next bytes that are stored begin, from `offset` on: holes are left out."""


# --- status


def status_of(uri: str) -> FileStatus:
    """The status of a file now; raises FileNotFoundError and other OSErrors."""
    if not is_remote(uri):
        return disk_status(os.stat(uri))
    path = parse_source(uri)
    with _file_errors():
        if isinstance(path, WebPath):
            about = web_info(path)
            found = remote_status(about.size, about.etag)._replace(is_regular=not about.is_folder)
        else:
            assert isinstance(path, ObjectPath)
            info = find_object(path)
            if info is None:
                raise FileNotFoundError(errno.ENOENT, "No such object", uri)
            found = remote_status(info.size, info.etag)
    remember(uri, found)
    return found


def disk_status(status: os.stat_result) -> FileStatus:
    """The status of a file on a disk, of which size and time stand for the content."""
    etag = f"{status.st_size}-{status.st_mtime_ns}"
    return FileStatus(status.st_size, etag, stat.S_ISREG(status.st_mode))


def remote_status(size: int, etag: str) -> FileStatus:
    """The status of a remote file, by what a listing or the file's server says of it."""
    return FileStatus(size, f"{size}-{etag.strip(chr(34))}")


_recent: dict[str, tuple[float, FileStatus]] = {}


def remember(uri: str, status: FileStatus) -> None:
    """Keep the status of a remote file for recent_status."""
    if not is_remote(uri):
        return
    while len(_recent) >= MOST_RECENT:
        with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # another thread's work
            del _recent[next(iter(_recent))]
    _recent[uri] = (time.monotonic(), status)


def recent_status(uri: str) -> FileStatus:
    """status_of, but of a remote file as it was within the last RECENT_SECONDS."""
    kept = _recent.get(uri)
    if kept is not None and time.monotonic() < kept[0] + RECENT_SECONDS:
        return kept[1]
    return status_of(uri)


# --- bytes


def read_range(uri: str, offset: int, size: int, etag: str = "") -> bytes:
    """At most `size` bytes from `offset` on, of a remote file in one request.

    Raises ChangedFileError where an object's etag is not `etag`, if one is given, and what
    status_of does.
    """
    if is_remote(uri):
        with _file_errors():
            return _read_remote(uri, offset, size, etag)
    with open_regular(uri) as file:
        file.seek(offset)
        return file.read(min(size, max(0, os.fstat(file.fileno()).st_size - offset)))


def _read_remote(uri: str, offset: int, size: int, etag: str) -> bytes:
    path = parse_source(uri)
    if isinstance(path, WebPath):
        return read_web_range(path, offset, size, recent_status(uri).size)
    assert isinstance(path, ObjectPath)
    data, info = read_object_part(path, offset, size)
    if etag and info is not None and _etag(info) != etag:
        _recent.pop(uri, None)
        raise ChangedFileError(errno.EINVAL, "it has changed: run the command again", uri)
    return data


def _etag(info: ObjectInfo) -> str:
    return remote_status(info.size, info.etag).etag


def open_file(uri: str, status: FileStatus | None = None) -> BinaryIO:
    """A file as a seekable binary file; raises NotRegularError, and what status_of does.

    A remote one, of this `status` where it is known, is read in pieces of BUFFER_BYTES.
    """
    file = open_unbuffered(uri, status)
    return io.BufferedReader(file, BUFFER_BYTES) if isinstance(file, RangeReader) else file


def open_unbuffered(uri: str, status: FileStatus | None = None) -> BinaryIO | RangeReader:
    """open_file, but of a remote file each read is one request."""
    if not is_remote(uri):
        return open_regular(uri)
    status = status or recent_status(uri)
    return RangeReader(_ranges_of(uri, status), status.size)


@contextlib.contextmanager
def open_positioned(uri: str) -> Iterator[PositionedFile]:
    """A file that is read at rising offsets, as a tar's headers are; raises as open_file."""
    if is_remote(uri):
        yield _RemoteFile(uri, recent_status(uri))
        return
    with open_regular(uri) as file:
        yield DiskFile(file)


class DiskFile:
    """A PositionedFile on a disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self.size = os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def next_data(self, offset: int) -> int:
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            return self.size if error.errno == errno.ENXIO else offset


class _RemoteFile:
    """A PositionedFile that is remote."""

    def __init__(self, uri: str, status: FileStatus) -> None:
        self.size = status.size
        self._ahead = ReadAhead(_ranges_of(uri, status))

    def read_at(self, offset: int, size: int) -> bytes:
        return self._ahead.read_at(offset, min(size, max(0, self.size - offset)))

    def next_data(self, offset: int) -> int:
        return offset


def _ranges_of(uri: str, status: FileStatus) -> ReadRange:
    return functools.partial(read_range, uri, etag=status.etag)


@contextlib.contextmanager
def _file_errors() -> Iterator[None]:
    """What an object store refuses becomes an error of the one file: others may be read."""
    try:
        yield
    except ObjectStoreError as error:
        raise PermissionError(errno.EACCES, str(error)) from error
