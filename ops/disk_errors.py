"""Errors of a disk, or of a path on it, as one sentence: what failed, where, and what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from ops.config import UserError
from ops.object_paths import AnyPath

_OTHER_PLACE = "Name a folder on another file system"
_ALLOW = "Allow writing there, or reading if it is an input"
_CHECK = "Check the disk"
#: What the user can do about an error of the machine, by its number; the others are bugs, unless
#: they name a file.
REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room",
    errno.EROFS: "Allow writing there",
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EIO: _CHECK,
    errno.ESTALE: _CHECK,
    errno.ETIMEDOUT: _CHECK,
    errno.ENOTCONN: _CHECK,
    errno.ENODEV: _CHECK,
    errno.ENXIO: _CHECK,
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), or use another file system",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
    errno.ENFILE: "Close other programs",
    errno.ENOMEM: "Free memory",
    errno.EMLINK: _OTHER_PLACE,
    errno.EOPNOTSUPP: _OTHER_PLACE,
    errno.ENOSYS: _OTHER_PLACE,
    errno.ENOLCK: _OTHER_PLACE,
    errno.EXDEV: _OTHER_PLACE,
    errno.ENAMETOOLONG: "Use a shorter name",
    errno.ENOENT: "Check the path",
    errno.ENOTDIR: "Check the path: part of it is a file",
    errno.EISDIR: "Name a file instead of a folder",
    errno.EEXIST: "Name another path, or move this one away",
    errno.ELOOP: "Remove the link that leads to itself",
    errno.EBUSY: "Wait until nothing uses it",
    errno.ETXTBSY: "Wait until nothing uses it",
}
# What link() fails with where a file system, such as vfat and some FUSE and cloud mounts, has none.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class DiskError(UserError):
    """A file that the machine does not let us read or write."""


def is_of_machine(error: OSError) -> bool:
    """Whether an error is of the machine or the user's paths, and not a bug: it has a remedy, or
    names a file."""
    return error.errno in REMEDIES or error.filename is not None


def disk_error_message(error: OSError, folder: AnyPath | None = None) -> str:
    """The sentence for `error`, raised where files below `folder` are read or written."""
    named = error.filename if error.filename2 is None else error.filename2  # of a copy, its target
    where = folder if named is None else named
    reason = error.strerror or str(error)
    remedy = REMEDIES.get(error.errno or 0, _CHECK)
    what = reason if where is None else f"{where}: {reason}"
    return f"{what}. {remedy}, then run the same command again."


def no_links(error: OSError) -> bool:
    """Whether link() failed since the file system has no hard links."""
    return error.errno in _NO_LINKS


@contextlib.contextmanager
def disk_errors_explained(folder: AnyPath) -> Iterator[None]:
    """Raise an OSError of the body, which writes below `folder`, as a DiskError instead."""
    try:
        yield
    except OSError as error:
        raise DiskError(disk_error_message(error, folder)) from error
