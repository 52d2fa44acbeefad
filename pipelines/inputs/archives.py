"""Files that hold many images: tar files, as WebDataset writes them, and Parquet tables.

An image in one is located by a number, its place: in a tar file the byte at which its content
starts, in a table its row. `format_addresses` joins path and place into one string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops.config import UserError
from ops.files import NotRegularError
from ops.images import ImageError
from ops.text import printable
from pipelines.inputs.carried import Carried
from pipelines.inputs.class_names import class_name
from pipelines.inputs.fields import Fields
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.parquet import (
    carried_rows,
    image_labels,
    image_names,
    label_column,
    read_row,
)
from pipelines.inputs.source_files import ChangedFileError, open_file, open_positioned, read_range
from pipelines.inputs.table_columns import NoTableImagesError, TableError
from pipelines.inputs.tar_headers import BLOCK, TarError, content_size
from pipelines.inputs.tar_images import tar_images

ADDRESS = re.compile(r"(.+\.(?:tar|parquet))#([0-9]{1,18})(?:@(.+))?", re.DOTALL | re.IGNORECASE)
MAX_BYTES = 1 << 30  # about twice MAX_PIXELS uncompressed; larger files would only fill the memory


class ArchiveError(UserError):
    """An archive that cannot be listed to its end."""


class NoImagesError(ArchiveError):
    """An intact file that holds no images, such as a table of captions."""


class Member(NamedTuple):
    """One image in an archive."""

    name: str  # its path in the archive
    place: int
    size: int  # bytes; 0 where only reading it tells
    label: str | None  # its class as the archive gives it, where that was asked for
    carried: Carried


class Address(NamedTuple):
    """Where an image in an archive is."""

    path: str
    place: int
    column: str | None  # of a table, where it was asked for by name


def is_archive(path: str) -> bool:
    """Whether a file has the suffix of an archive."""
    return os.path.splitext(path)[1].lower() in _FORMATS


def archive_members(path: str, log: MemberLog, fields: Fields) -> Iterator[Member]:
    """The images in an archive, in the order they are stored, with what `fields` asks for.

    `log` gets what else it holds. Raises ArchiveError where it is corrupt, NotRegularError where it
    is no regular file, and OSError; the members yielded before that are valid.
    """
    open_file(path).close()
    return _format_of(path).members(path, log, fields)


def read_member(
    path: str, place: int, column: str | None = None, size: int = 0, etag: str | None = None
) -> bytes:
    """The bytes of one image; raises ImageError if they cannot be read.

    `size` and the archive's `etag` are those that are planned, where they are known.
    """
    try:
        return _format_of(path).read(path, place, column, size, etag)
    except ChangedFileError:
        raise changed(path) from None
    except FileNotFoundError:
        raise ImageError("missing", f"{path} is gone") from None
    except NotRegularError as error:
        raise ImageError("unreadable", str(error)) from None
    except OSError as error:
        raise ImageError("unreadable", f"{path}: {error.strerror or error}") from None


def changed(path: str) -> ImageError:
    """The error of an image in an archive that is not as it was planned."""
    return ImageError("changed", f"{path} has changed; run again to update the plan")


def check_size(size: int) -> None:
    """Raise ImageError for an image file of more than MAX_BYTES, or a plan's negative size."""
    if not 0 <= size <= MAX_BYTES:
        raise ImageError("too large", f"{size:,} bytes; the limit is {MAX_BYTES:,}")


def format_addresses(path: str, places: pa.Array, column: str | None = None) -> pa.Array:
    """The uri of each image in an archive: "path#place", or "path#place@column"."""
    text = pa.large_string()
    start, end = pa.scalar(f"{path}#", text), pa.scalar(f"@{column}" if column else "", text)
    return pc.binary_join_element_wise(start, places.cast(text), end, pa.scalar("", text))


def format_address(path: str, place: int) -> str:
    """format_addresses of one image."""
    return f"{path}#{place}"


def parse_address(uri: str) -> Address | None:
    """What a uri that `format_addresses` made says; None for any other."""
    match = ADDRESS.fullmatch(uri)
    return Address(match[1], int(match[2]), match[3]) if match else None


# --- tar files


def _tar_members(path: str, log: MemberLog, fields: Fields) -> Iterator[Member]:
    empty = True
    with open_positioned(path) as file:
        try:
            for image in tar_images(file, log, fields):
                empty = False
                yield Member(*image)
        except TarError as error:
            raise ArchiveError(str(error)) from None
    if empty and not log.skipped and not log.lines():
        raise NoImagesError("no files")


def _read_tar(path: str, place: int, column: str | None, size: int, etag: str | None) -> bytes:
    start = max(0, place - BLOCK)
    data = read_range(path, start, BLOCK + size, etag or "")
    try:
        found = content_size(data[:BLOCK])
    except ValueError:
        raise ImageError("changed", f"{path} no longer has an image at {place}") from None
    check_size(found)
    data = data[BLOCK : BLOCK + found]
    if found != size:  # another one than is planned, or none is
        data = read_range(path, start + BLOCK, found, etag or "")
    if len(data) < found:
        raise ImageError("changed", f"{path} is cut short: it ends within the image at {place}")
    return data


# --- Parquet tables


def _parquet_members(path: str, log: MemberLog, fields: Fields) -> Iterator[Member]:
    image, asked = fields.image_column, fields.label_column
    try:
        names, note = image_names(path, image)
        if note is not None:
            log.note(note)
        column = label_column(path, image, asked)
        if column is not None and not fields.labels:
            log.note(f"column '{printable(column)}' holds classes that --labels field reads")
        labels = image_labels(path, image, asked) if fields.labels else repeat(None)
        rows = carried_rows(path, fields.carry, image, column if fields.labels else None)
        for row, (name, label, found) in enumerate(zip(names, labels, rows, strict=False)):
            yield Member(name, row, 0, label and class_name(label.encode()), found)
    except NoTableImagesError as error:
        raise NoImagesError(str(error)) from None
    except TableError as error:
        raise ArchiveError(str(error)) from None


def _read_row(path: str, place: int, column: str | None, size: int, etag: str | None) -> bytes:
    return read_row(path, place, column)


class _Format(NamedTuple):
    members: Callable[[str, MemberLog, Fields], Iterator[Member]]
    read: Callable[[str, int, str | None, int, str | None], bytes]


_FORMATS = {
    ".tar": _Format(_tar_members, _read_tar),
    ".parquet": _Format(_parquet_members, _read_row),
}


def _format_of(path: str) -> _Format:
    return _FORMATS[os.path.splitext(path)[1].lower()]
