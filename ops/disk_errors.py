"""Errors of a full, read-only or failing disk as one sentence: what failed, where, what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ops.config import UserError

REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room",
    errno.EROFS: "Allow writing there",
    errno.EACCES: "Allow writing there",
    errno.EPERM: "Allow writing there",
    errno.EIO: "Check the disk",
}


class DiskError(UserError):
    """A disk that cannot be written."""


def disk_error_message(error: OSError, folder: Path | None = None) -> str:
    """The sentence for `error`, raised where files below `folder` are written."""
    where = error.filename or folder
    reason = error.strerror or str(error)
    remedy = REMEDIES.get(error.errno or 0, "Check the disk")
    what = f"{where}: {reason}" if where else reason
    return f"{what}. {remedy}, then run the same command again."


@contextlib.contextmanager
def disk_errors_explained(folder: Path) -> Iterator[None]:
    """Raise an OSError of the body, which writes below `folder`, as a DiskError instead."""
    try:
        yield
    except OSError as error:
        raise DiskError(disk_error_message(error, folder)) from error
