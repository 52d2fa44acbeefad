"""Whole objects kept as local files, up to a number of bytes, for all processes of a machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ops.config import UserError
from ops.disk_errors import DiskError, disk_error_message
from ops.files import fsync_path, make_folders, waited_lock
from ops.object_paths import ObjectPath
from ops.object_store import download

STALE_SECONDS = 3600.0  # a download that was not written to for so long was killed


class CorruptObjectError(UserError):
    """An object whose content does not have the hash that it should."""


class FileCache:
    """Copies of objects below `folder`, named by the hash of their content.

    At most `max_bytes` are kept, the last used ones, and always the newest. A copy appears whole,
    once its hash was found right, so a process or machine that dies leaves none that is wrong. Any
    number of processes share the folder: one downloads, the others wait for it. A file that is
    removed while a process has it mapped stays readable there. Can be pickled.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def get(self, path: ObjectPath, sha256: str) -> Path:
        """The local copy of an object with this hash, downloaded where there is none.

        Raises FileNotFoundError where there is no object, CorruptObjectError where its content is
        another, DiskError where the disk refuses to keep it.
        """
        copy = self.path_of(sha256)
        if self._use(copy):
            return copy
        try:
            make_folders(copy.parent)
            with waited_lock(copy.with_name(f"{sha256}.lock")):
                if not self._use(copy):
                    self._download(path, sha256, copy)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename == str(path):
                raise
            message = disk_error_message(error, self.folder)
            raise DiskError(f"{message} Or give another --cache-dir.") from error
        return copy

    def path_of(self, sha256: str) -> Path:
        """Where the copy of an object with this hash lies, if there is one."""
        return self.folder / sha256[:2] / sha256

    def _use(self, copy: Path) -> bool:
        """Whether there is a copy; it then counts as just used."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(copy)
            return True
        return False

    def _download(self, path: ObjectPath, sha256: str, copy: Path) -> None:
        partial = copy.with_name(f"{sha256}.{uuid.uuid4().hex}.partial")
        try:
            try:
                self._write(path, partial)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._shrink(0)  # others may need less than the disk has lost
                self._write(path, partial)
            with open(partial, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise CorruptObjectError(
                    f"{path}: its content is not what the index says. Run verify."
                )
            self._shrink(max(0, self.max_bytes - partial.stat().st_size))
            fsync_path(partial)
            os.replace(partial, copy)
        finally:
            partial.unlink(missing_ok=True)

    def _write(self, path: ObjectPath, partial: Path) -> None:
        with open(partial, "wb") as file:
            download(path, file)

    def _shrink(self, most: int) -> None:
        """Remove the copies used longest ago until the others have at most `most` bytes."""
        found = sorted(self._copies(), reverse=True)  # the last used one first
        kept = 0
        for _, size, path in found:
            kept += size
            if kept > most:
                Path(path).unlink(missing_ok=True)
                Path(f"{path}.lock").unlink(missing_ok=True)

    def _copies(self) -> Iterator[tuple[float, int, str]]:
        """(time of the last use, bytes, path) of each copy; removes what killed downloads left."""
        folders = [entry.path for entry in os.scandir(self.folder) if len(entry.name) == 2]
        for folder in folders:
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    state = entry.stat()
                    if entry.name.endswith(".partial"):
                        if time.time() - state.st_mtime > STALE_SECONDS:
                            os.unlink(entry.path)
                    elif not entry.name.endswith(".lock"):
                        yield state.st_mtime, state.st_size, entry.path
