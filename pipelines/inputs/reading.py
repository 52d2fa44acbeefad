"""Reading the bytes of one image, from a file of its own or from an archive."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ops.files import NotRegularError
from ops.images import ImageError
from ops.transient_errors import TransientError, with_retries
from ops.web_paths import is_remote
from pipelines.inputs.archives import (
    MAX_BYTES,
    Address,
    changed,
    check_size,
    parse_address,
    read_member,
)
from pipelines.inputs.parquet import is_table
from pipelines.inputs.source_files import FileStatus, open_file, read_range, recent_status


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an input: its stable name and where its bytes are."""

    key: str  # the path below the input, with "/" between folders
    uri: str  # the file to open; for an image in an archive, archives.format_addresses
    offset: int | None  # the place in an archive (archives.Member); None: the whole file
    size: int  # bytes; 0 where the file was not found, or only reading a table tells
    etag: str  # changes when the content does
    label_name: str | None  # the class, see listing.LABELS
    caption: str | None = None
    carried: str | None = None  # further columns as a JSON object, see carried.Carried


@contextlib.contextmanager
def _image_errors() -> Iterator[None]:
    """What a file is to blame for becomes an ImageError."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError("missing", "no such file, or a link to nothing") from None
    except NotRegularError:
        raise ImageError("unreadable", "not a regular file") from None
    except OSError as error:
        raise ImageError("unreadable", str(error.strerror or error)) from None


def open_image_file(uri: str, size: int | None = None) -> BinaryIO:
    """Open a file for reading, of `size` bytes where that is known; raises ImageError if it is
    missing, unreadable or not regular."""
    with _image_errors():
        return open_file(uri, None if size is None else FileStatus(size, ""))


def read_head(uri: str, count: int) -> bytes:
    """The first `count` bytes of a file, or all of a shorter one; raises as open_image_file."""
    with _image_errors():
        return read_range(uri, 0, count)


def read_bytes(uri: str, offset: int | None, size: int, etag: str | None = None) -> bytes:
    """The bytes of one planned image; raises ImageError if missing, unreadable or changed.

    Raises TransientError where the machine cannot read it now; but of an image of its own at a web
    server ImageError, since a list may name servers that are gone. A file of its own has changed if
    its size has; an archive if its etag has, which is checked where `etag` is given.
    """
    try:
        return _read_planned(uri, offset, size, etag)
    except TransientError as error:
        if offset is not None or not uri.startswith(("https://", "http://")):
            raise
        reason = str(error)
    raise ImageError("unreachable", reason)  # here, since its context would count as its cause


@with_retries
def _read_planned(uri: str, offset: int | None, size: int, etag: str | None) -> bytes:
    check_size(size)
    place = None if offset is None else parse_address(uri)
    if place is not None:
        data = _read_member(place, size, etag)
        return _checked(data, size) if size else data
    with _image_errors():
        # One more byte of a whole file shows that it grew.
        data = read_range(uri, offset or 0, size + (offset is None))
    return _checked(data, size)


@with_retries
def read_end(uri: str, offset: int | None, size: int, count: int) -> bytes:
    """The last `count` bytes of a planned image, or all of a shorter one.

    Raises ImageError where they cannot be read.
    """
    place = None if offset is None else parse_address(uri)
    if place is not None and is_table(place.path):
        return read_bytes(uri, offset, size)[-count:]
    start = (offset or 0) + max(0, size - count)
    with _image_errors():
        return read_range(uri if place is None else place.path, start, min(size, count))


def read_source(uri: str) -> bytes:
    """The bytes an Entry's uri leads to now, whatever was planned; ImageError if there are none."""
    place = parse_address(uri)
    if place is not None and (is_remote(uri) or not os.path.lexists(uri)):
        return read_member(*place)
    with _image_errors():
        return read_range(uri, 0, MAX_BYTES)


def read_entry(entry: Entry) -> Callable[[], bytes]:
    """A function that reads an image's bytes when it is called."""
    return functools.partial(read_bytes, entry.uri, entry.offset, entry.size, entry.etag)


def content_hash(data: bytes) -> str:
    """The first 32 hex digits of the SHA-256 of an image file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def _read_member(address: Address, size: int, etag: str | None) -> bytes:
    data = read_member(*address, size, etag)
    if etag is not None and recent_status(address.path).etag != etag:
        raise changed(address.path)
    return data


def _checked(data: bytes, size: int) -> bytes:
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more bytes"
        raise ImageError(
            "changed", f"{found}, planned with {size}; run encode again to update the plan"
        )
    return data
