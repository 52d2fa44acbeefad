"""Reading the bytes of one image, from a file of its own or from an archive."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from ops.files import NotRegularError
from ops.images import ImageError
from ops.paths import open_binary, parse_path
from ops.transient_errors import with_retries
from pipelines.inputs.archives import (
    MAX_BYTES,
    Address,
    check_size,
    file_etag,
    parse_address,
    read_member,
)
from pipelines.inputs.parquet import is_table


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


def open_image_file(uri: str) -> BinaryIO:
    """Open a file for reading; raises ImageError if it is missing, unreadable or not regular."""
    try:
        return open_binary(parse_path(uri))
    except FileNotFoundError:
        raise ImageError("missing", "no such file, or a link to nothing") from None
    except NotRegularError:
        raise ImageError("unreadable", "not a regular file") from None
    except OSError as error:
        raise ImageError("unreadable", str(error.strerror or error)) from None


@with_retries
def read_bytes(uri: str, offset: int | None, size: int, etag: str | None = None) -> bytes:
    """The bytes of one planned image; raises ImageError if missing, unreadable or changed.

    Raises TransientError where the machine cannot read it now. A file of its own has changed if
    its size has; an archive if its etag has, which is checked where `etag` is given.
    """
    check_size(size)
    place = None if offset is None else parse_address(uri)
    if place is not None:
        data = _read_member(place, etag)
        return _checked(data, size) if size else data
    with open_image_file(uri) as file:
        # One more byte of a whole file shows that it grew.
        data = _read(file, offset or 0, size + (offset is None))
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
    with open_image_file(uri if place is None else place.path) as file:
        return _read(file, start, min(size, count))


def read_source(uri: str) -> bytes:
    """The bytes an Entry's uri leads to now, whatever was planned; ImageError if there are none."""
    place = parse_address(uri)
    if place is not None and not os.path.lexists(uri):
        return read_member(*place)
    with open_image_file(uri) as file:
        return _read(file, 0, MAX_BYTES)


def read_entry(entry: Entry) -> Callable[[], bytes]:
    """A function that reads an image's bytes when it is called."""
    return functools.partial(read_bytes, entry.uri, entry.offset, entry.size, entry.etag)


def content_hash(data: bytes) -> str:
    """The first 32 hex digits of the SHA-256 of an image file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    try:
        file.seek(offset)
        return file.read(size)
    except OSError as error:
        raise ImageError("unreadable", str(error.strerror or error)) from None


def _read_member(address: Address, etag: str | None) -> bytes:
    data = read_member(*address)
    if etag is not None and file_etag(os.stat(address.path)) != etag:
        raise ImageError("changed", f"{address.path} has changed; run again to update the plan")
    return data


def _checked(data: bytes, size: int) -> bytes:
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more bytes"
        raise ImageError(
            "changed", f"{found}, planned with {size}; run encode again to update the plan"
        )
    return data
