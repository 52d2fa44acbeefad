"""The file operations that durability depends on, behind one object.

Everything that a store or run folder must not lose is written through `disk`, so tests can replace
it to record operations, tear writes, fail, or kill the process at any of them.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import BinaryIO

from ops.disk_errors import no_links


class Disk:
    """The operating system's file operations; each raises OSError as those do."""

    def create(self, path: Path) -> BinaryIO:
        """A new file, open for writing; raises FileExistsError if the name is taken."""
        return open(path, "xb")

    def fsync(self, path: Path) -> None:
        """Flush a file's content, or a folder's directory entries, to the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """A second name for `source`; raises FileExistsError if `target` is taken."""
        os.link(source, target)

    def makes_links(self, folder: Path) -> bool:
        """Whether the file system of an existing folder has hard links.

        Without them small files are created exclusively, and a kill can leave the first part of
        one.
        """
        name = f"probe-{uuid.uuid4().hex}"
        source, target = folder / f"{name}.partial", folder / f"{name}-2.partial"
        try:
            source.touch(exist_ok=False)
            os.link(source, target)
        except OSError as error:
            if no_links(error):
                return False
            raise
        finally:
            source.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
        return True

    def replace(self, source: Path, target: Path) -> None:
        """Rename `source` to `target`, replacing an existing file."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name; no error if it does not exist."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Make one folder; raises FileExistsError if the name is taken."""
        path.mkdir()


#: Always call `ops.disk.disk.fsync(path)`: a name bound by `from ops.disk import disk` keeps the
#: object that a test replaces.
disk = Disk()
