"""Files that hold many images: tar files, as WebDataset writes them, and Parquet tables.

An image in one is located by a number, its place: in a tar file the byte at which its content
starts, in a table its row. `format_address` joins path and place into one string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import NamedTuple

from ops.config import UserError
from ops.files import NotRegularError, open_regular
from ops.images import ImageError
from ops.text import printable
from pipelines.inputs.class_names import class_name
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.parquet import (
    NoTableImagesError,
    TableError,
    image_labels,
    image_names,
    label_column,
    read_row,
)
from pipelines.inputs.tar_headers import BLOCK, TarError, content_size
from pipelines.inputs.tar_images import tar_images

ADDRESS = re.compile(r"(.+\.(?:tar|parquet))#([0-9]{1,18})", re.DOTALL | re.IGNORECASE)
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


def is_archive(path: str) -> bool:
    """Whether a file has the suffix of an archive."""
    return os.path.splitext(path)[1].lower() in _FORMATS


def archive_members(path: str, log: MemberLog, with_labels: bool = False) -> Iterator[Member]:
    """The images in an archive, in the order they are stored; `log` gets what else it holds.

    `with_labels`: with the classes that a tar sample's field or a table's column gives. Raises
    ArchiveError where it is corrupt, NotRegularError where it is no regular file, and OSError; the
    members yielded before that are valid.
    """
    open_regular(path).close()
    return _format_of(path).members(path, log, with_labels)


def read_member(path: str, place: int) -> bytes:
    """The bytes of one image; raises ImageError if they cannot be read."""
    try:
        return _format_of(path).read(path, place)
    except FileNotFoundError:
        raise ImageError("missing", f"{path} is gone") from None
    except NotRegularError as error:
        raise ImageError("unreadable", str(error)) from None
    except OSError as error:
        raise ImageError("unreadable", f"{path}: {error.strerror or error}") from None


def check_size(size: int) -> None:
    """Raise ImageError for an image file of more than MAX_BYTES, or a plan's negative size."""
    if not 0 <= size <= MAX_BYTES:
        raise ImageError("too large", f"{size:,} bytes; the limit is {MAX_BYTES:,}")


def archive_etag(path: str) -> str:
    """Size and modification time of an archive: they stand for the content of all its images."""
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def format_address(path: str, place: int) -> str:
    """The uri of one image in an archive: "path#place"."""
    return f"{path}#{place}"


def parse_address(uri: str) -> tuple[str, int] | None:
    """(path, place) of a uri that `format_address` made; None for any other."""
    match = ADDRESS.fullmatch(uri)
    return (match[1], int(match[2])) if match else None


# --- tar files


def _tar_members(path: str, log: MemberLog, with_labels: bool) -> Iterator[Member]:
    empty = True
    with open_regular(path) as file:
        try:
            for image in tar_images(file, log, with_labels):
                empty = False
                yield Member(*image)
        except TarError as error:
            raise ArchiveError(str(error)) from None
    if empty and not log.skipped and not log.lines():
        raise NoImagesError("no files")


def _read_tar(path: str, place: int) -> bytes:
    with open_regular(path) as file:
        try:
            file.seek(max(0, place - BLOCK))
            size = content_size(file.read(BLOCK))
        except ValueError:
            raise ImageError("changed", f"{path} no longer has an image at {place}") from None
        check_size(size)
        data = file.read(min(size, os.fstat(file.fileno()).st_size))
    if len(data) < size:
        raise ImageError("changed", f"{path} is cut short: it ends within the image at {place}")
    return data


# --- Parquet tables


def _parquet_members(path: str, log: MemberLog, with_labels: bool) -> Iterator[Member]:
    try:
        names, note = image_names(path)
        if note is not None:
            log.note(note)
        column = label_column(path)
        if column is not None and not with_labels:
            log.note(f"column '{printable(column)}' holds classes that --labels field reads")
        labels = image_labels(path) if with_labels else repeat(None)
        for row, (name, label) in enumerate(zip(names, labels, strict=False)):
            yield Member(name, row, 0, label and class_name(label.encode()))
    except NoTableImagesError as error:
        raise NoImagesError(str(error)) from None
    except TableError as error:
        raise ArchiveError(str(error)) from None


class _Format(NamedTuple):
    members: Callable[[str, MemberLog, bool], Iterator[Member]]
    read: Callable[[str, int], bytes]


_FORMATS = {
    ".tar": _Format(_tar_members, _read_tar),
    ".parquet": _Format(_parquet_members, read_row),
}


def _format_of(path: str) -> _Format:
    return _FORMATS[os.path.splitext(path)[1].lower()]
