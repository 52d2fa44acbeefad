"""Files that hold many images: tar files, as WebDataset writes them, and Parquet tables.

An image in one is found again by a number: in a tar file the byte where its content starts, in a
table its row. `address` writes both into one name.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from ops.config import UserError
from ops.images import SUFFIXES, ImageError
from pipelines.inputs import parquet as parquet_images

ADDRESS = re.compile(r"(.+\.(?:tar|parquet))#(\d+)", re.DOTALL | re.IGNORECASE)


class ArchiveError(UserError):
    """A file of images that cannot be listed to its end."""


class NoImagesError(ArchiveError):
    """A whole file that is not for images, such as a table of captions."""


class Member(NamedTuple):
    """One image in an archive."""

    name: str  # its path in there
    place: int
    size: int  # bytes; 0 where that is only known when it is read


def is_archive(path: str) -> bool:
    """Whether a file is named as one that holds many images."""
    return os.path.splitext(path)[1].lower() in _KINDS


def archive_members(path: str) -> Iterator[Member]:
    """The images in an archive, in the order they lie in it.

    Raises ArchiveError where it cannot be read on; what was given before that is good.
    """
    return _KINDS[os.path.splitext(path)[1].lower()].members(path)


def read_member(path: str, place: int) -> bytes:
    """The bytes of one image; ImageError where they are not to be had."""
    try:
        return _KINDS[os.path.splitext(path)[1].lower()].read(path, place)
    except FileNotFoundError:
        raise ImageError("missing", f"{path} is gone") from None
    except OSError as error:
        raise ImageError("unreadable", f"{path}: {error.strerror or error}") from None


def archive_etag(path: str) -> str:
    """What changes when an archive does, and with it every image in it."""
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def address(path: str, place: int) -> str:
    """The name by which one image of an archive is found again."""
    return f"{path}#{place}"


def parse_address(uri: str) -> tuple[str, int] | None:
    """(path, place) of what `address` wrote; None for anything else."""
    match = ADDRESS.fullmatch(uri)
    return (match[1], int(match[2])) if match else None


# --- tar files


def _tar_members(path: str) -> Iterator[Member]:
    fields: list[Member] = []  # of one sample
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _tar_images(tar):
                if fields and _sample_of(member) != _sample_of(fields[0]):
                    yield from _pictures(fields)
                    fields = []
                fields.append(member)
    except tarfile.ReadError as error:
        yield from _pictures(fields)
        raise ArchiveError(f"not a whole, uncompressed tar file ({error})") from None
    yield from _pictures(fields)


def _tar_images(tar: tarfile.TarFile) -> Iterator[Member]:
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # a gigabyte for a million of them
        name = info.name.removeprefix("./")
        hidden = os.path.basename(name).startswith(".")
        if info.isreg() and not info.issparse() and not hidden and _is_named_image(name):
            yield Member(name, info.offset_data, info.size)
    # A header that makes no sense would else pass for the end, and hide what follows it.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"a broken header at byte {tar.offset:,}")


def _is_named_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _sample_of(member: Member) -> str:
    """A WebDataset sample is the files whose names agree up to the first dot."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _pictures(fields: list[Member]) -> list[Member]:
    """Of one sample's images those that are the picture itself: `7.jpg`, and not `7.depth.png`."""
    plain = [field for field in fields if len(PurePosixPath(field.name).suffixes) == 1]
    return plain or fields


def _read_tar(path: str, place: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(place - tarfile.BLOCKSIZE)
        header = file.read(tarfile.BLOCKSIZE)
        try:
            size = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape").size
        except (tarfile.TarError, ValueError):
            raise ImageError("changed", f"{path} no longer has an image at {place}") from None
        return file.read(size)


class _Kind(NamedTuple):
    members: Callable[[str], Iterator[Member]]
    read: Callable[[str, int], bytes]


def _parquet_members(path: str) -> Iterator[Member]:
    try:
        for row, name in enumerate(parquet_images.names(path)):
            yield Member(name, row, 0)
    except parquet_images.NoImagesError as error:
        raise NoImagesError(str(error)) from None
    except pa.ArrowInvalid as error:
        raise ArchiveError(f"not a whole Parquet file ({error})") from None


_KINDS = {
    ".tar": _Kind(_tar_members, _read_tar),
    ".parquet": _Kind(_parquet_members, parquet_images.read_row),
}
