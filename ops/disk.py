"""The file operations that durability hangs on, behind one object.

All that a store or a run folder must not lose goes through `disk`, so a test can put another in
its place that records, tears, fails, stops or dies at any of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


class Disk:
    """The operating system's own file operations; each raises OSError as that does."""

    def create(self, path: Path) -> BinaryIO:
        """A new file, open for writing; FileExistsError where the name is taken."""
        return open(path, "xb")

    def fsync(self, path: Path) -> None:
        """Flush a file's content, or a folder's list of names, to the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """A second name for `source`; FileExistsError where `target` is taken."""
        os.link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Rename over whatever file `target` is."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name; none to remove is no error."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """One new folder; FileExistsError where the name is taken."""
        path.mkdir()


#: What is used everywhere: call `ops.disk.disk.fsync(path)`, never a copy of the name.
disk = Disk()
