"""Files that hold many images: tar files, as WebDataset writes them, and Parquet tables.

An image in one is located by a number, its place: in a tar file the byte at which its content
starts, in a table its row. `format_address` joins path and place into one string.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from ops.config import UserError
from ops.images import SUFFIXES, ImageError
from pipelines.inputs.parquet import NoTableImagesError, TableError, image_names, read_row

ADDRESS = re.compile(r"(.+\.(?:tar|parquet))#(\d+)", re.DOTALL | re.IGNORECASE)


class ArchiveError(UserError):
    """An archive that cannot be listed to its end."""


class NoImagesError(ArchiveError):
    """An intact file that holds no images, such as a table of captions."""


class Member(NamedTuple):
    """One image in an archive."""

    name: str  # its path in the archive
    place: int
    size: int  # bytes; 0 where only reading it tells


def is_archive(path: str) -> bool:
    """Whether a file has the suffix of an archive."""
    return os.path.splitext(path)[1].lower() in _FORMATS


def archive_members(path: str) -> Iterator[Member]:
    """The images in an archive, in the order they are stored.

    Raises ArchiveError where it is corrupt; the members yielded before that are valid.
    """
    return _format_of(path).members(path)


def read_member(path: str, place: int) -> bytes:
    """The bytes of one image; raises ImageError if they cannot be read."""
    try:
        return _format_of(path).read(path, place)
    except FileNotFoundError:
        raise ImageError("missing", f"{path} is gone") from None
    except OSError as error:
        raise ImageError("unreadable", f"{path}: {error.strerror or error}") from None


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


def _tar_members(path: str) -> Iterator[Member]:
    sample: list[Member] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _tar_images(tar):
                if sample and _sample_name(member) != _sample_name(sample[0]):
                    yield from _main_images(sample)
                    sample = []
                sample.append(member)
    except tarfile.ReadError as error:
        yield from _main_images(sample)
        raise ArchiveError(f"not a whole, uncompressed tar file ({error})") from None
    yield from _main_images(sample)


def _tar_images(tar: tarfile.TarFile) -> Iterator[Member]:
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # a gigabyte for a million of them
        name = info.name.removeprefix("./")
        hidden = os.path.basename(name).startswith(".")
        if info.isreg() and not info.issparse() and not hidden and has_image_suffix(name):
            yield Member(name, info.offset_data, info.size)
    # tarfile takes an invalid header for the end of the file, which would hide all that follows.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"a broken header at byte {tar.offset:,}")


def has_image_suffix(name: str) -> bool:
    """Whether a name has the suffix of an image format we read."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _sample_name(member: Member) -> str:
    """A WebDataset sample is the files whose paths agree up to the first dot of the base name."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _main_images(sample: list[Member]) -> list[Member]:
    """Those of a sample's images that have no field name: `7.jpg`, not `7.depth.png`."""
    main = [member for member in sample if len(PurePosixPath(member.name).suffixes) == 1]
    return main or sample


def _read_tar(path: str, place: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(place - tarfile.BLOCKSIZE)
        header = file.read(tarfile.BLOCKSIZE)
        try:
            size = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape").size
        except (tarfile.TarError, ValueError):
            raise ImageError("changed", f"{path} no longer has an image at {place}") from None
        return file.read(size)


# --- Parquet tables


def _parquet_members(path: str) -> Iterator[Member]:
    try:
        names, _ = image_names(path)
        for row, name in enumerate(names):
            yield Member(name, row, 0)
    except NoTableImagesError as error:
        raise NoImagesError(str(error)) from None
    except TableError as error:
        raise ArchiveError(str(error)) from None


class _Format(NamedTuple):
    members: Callable[[str], Iterator[Member]]
    read: Callable[[str, int], bytes]


_FORMATS = {
    ".tar": _Format(_tar_members, _read_tar),
    ".parquet": _Format(_parquet_members, read_row),
}


def _format_of(path: str) -> _Format:
    return _FORMATS[os.path.splitext(path)[1].lower()]
