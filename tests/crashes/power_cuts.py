"""Power cuts: the states of a disk that are possible after one, given what was flushed before.

`RecordingDisk` performs every operation and records what a power cut just before it could leave.
The model is stricter than journalled file systems, so that whatever survives it survives on those:

- a file's content is durable as of its last fsync; later writes may be whole, missing, cut short,
  or zeros of the right length;
- a name in a folder is durable as of that folder's last fsync; each later link, unlink or new file
  is kept or lost independently; flushing a file does not flush its name;
- a rename happens as a whole or not at all, and flushing either of its folders makes it durable.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ops.disk import Disk
from tests.crashes.disk_doubles import kind_of

Name = tuple[int, str]  # a folder's inode and a name in it
Change = dict[Name, int | None]  # one operation on names: the inode each stands for afterwards
TEARS = ("lost", "short", "zeros", "whole")


@dataclass
class Names:
    """The inodes of all names in a tree: as of the last flush, and the changes since."""

    durable: dict[Name, int] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def now(self) -> dict[Name, int]:
        return apply_changes(self.durable, self.pending)

    def flush(self, folder: int) -> None:
        """Make every pending change that touches a folder durable, and those that it undid."""
        left: list[Change] = []
        settled: Change = {}
        for change in reversed(self.pending):
            if any(parent == folder for parent, _ in change):
                settled = {**change, **settled}
            elif remaining := {name: to for name, to in change.items() if name not in settled}:
                left.append(remaining)
        self.durable = apply_changes(self.durable, [settled])
        self.pending = left[::-1]


def apply_changes(names: dict[Name, int], changes: list[Change]) -> dict[Name, int]:
    result = dict(names)
    for change in changes:
        for name, inode in change.items():
            if inode is None:
                result.pop(name, None)
            else:
                result[name] = inode
    return result


@dataclass(frozen=True)
class Moment:
    """The state just before one operation."""

    about_to: str  # the operation, "link part"
    top: int  # the inode of the recorded folder
    folders: frozenset[int]
    durable: dict[Name, int]
    pending: tuple[Change, ...]
    flushed: dict[int, bytes]  # by inode: content as of its last flush
    written: dict[int, bytes]  # by inode: content now, where it differs from what was flushed

    def rebuild(
        self, folder: Path, keep: Callable[[int], bool], tear: Callable[[int], str]
    ) -> None:
        """Make `folder` what a power cut at this moment leaves.

        `keep(i)` is whether the i-th pending change of names survives, `tear(i)` the element of
        TEARS for the i-th unflushed content.
        """
        kept = [change for i, change in enumerate(self.pending) if keep(i)]
        names = apply_changes(self.durable, kept)
        torn = {
            inode: _tear(self.flushed.get(inode, b""), data, tear(i))
            for i, (inode, data) in enumerate(self.written.items())
        }
        self._lay_out(folder, self.top, names, {**self.flushed, **torn})

    def _lay_out(
        self, folder: Path, inode: int, names: dict[Name, int], contents: dict[int, bytes]
    ) -> None:
        folder.mkdir()
        for (parent, name), child in names.items():
            if parent != inode:
                continue
            if child in self.folders:
                self._lay_out(folder / name, child, names, contents)
            else:
                (folder / name).write_bytes(contents.get(child, b""))


def _tear(flushed: bytes, written: bytes, how: str) -> bytes:
    if how == "lost":
        return flushed
    if how == "short":
        return written[: len(written) // 2]
    return bytes(len(written)) if how == "zeros" else written


class RecordingDisk(Disk):
    """Performs operations below `top` and records a Moment before each.

    Changes made by other means than this disk (a file written directly, a tree removed) are found
    at the next operation, each name as a change of its own.
    """

    def __init__(self, top: Path, root: Path) -> None:
        self.top, self.root = top, root
        self.moments: list[Moment] = []
        self._lock = threading.RLock()
        self._held: dict[int, int] = {}  # an open descriptor keeps the kernel from reusing inodes
        self._folders: set[int] = set()
        self._names = Names()
        self._stamps: dict[int, tuple[int, int]] = {}
        self._written: dict[int, bytes] = {}
        self._flushed: dict[int, bytes] = {}
        self._scan()
        self._names = Names(self._names.now())  # existing files are durable
        self._flushed, self._written = self._written, {}

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    # --- scanning

    def _scan(self) -> None:
        """Find new names, removed names and new content of everything below the top."""
        found: dict[Name, int] = {}
        self._scan_folder(self.top, found)
        known = self._names.now()
        for name in [name for name in known if name not in found]:
            self._names.pending.append({name: None})
        for name, inode in found.items():
            if known.get(name) != inode:
                self._names.pending.append({name: inode})

    def _scan_folder(self, folder: Path, found: dict[Name, int]) -> None:
        parent = self._hold(folder)
        self._folders.add(parent)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                self._scan_folder(path, found)
                found[parent, entry.name] = entry.inode()
                continue
            with contextlib.suppress(FileNotFoundError):  # removed by another thread just now
                found[parent, entry.name] = self._hold(path)
                self._scan_file(path)

    def _scan_file(self, path: Path) -> None:
        status = os.stat(path)
        stamp = (status.st_mtime_ns, status.st_size)
        if self._stamps.get(status.st_ino) != stamp:
            self._stamps[status.st_ino] = stamp
            self._written[status.st_ino] = path.read_bytes()

    def _hold(self, path: Path) -> int:
        inode = os.stat(path).st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)
        return inode

    # --- recording

    @contextlib.contextmanager
    def _recorded(self, operation: str, path: Path) -> Iterator[None]:
        with self._lock:
            self._scan()
            self.record(f"{operation} {kind_of(self.root, path)}")
            yield

    def record(self, about_to: str) -> None:
        """Add the present moment; called once by hand at the end of a run."""
        with self._lock:
            self._scan()
            self.moments.append(
                Moment(
                    about_to,
                    os.stat(self.top).st_ino,
                    frozenset(self._folders),
                    dict(self._names.durable),
                    tuple(self._names.pending),
                    dict(self._flushed),
                    {
                        inode: data
                        for inode, data in self._written.items()
                        if self._flushed.get(inode) != data
                    },
                )
            )

    def _change(self, source: Path | None, target: Path | None, inode: int) -> None:
        """One operation on names, as one pending change."""
        change: Change = {}
        if source is not None:
            change[os.stat(source.parent).st_ino, source.name] = None
        if target is not None:
            change[os.stat(target.parent).st_ino, target.name] = inode
        self._names.pending.append(change)

    # --- operations

    def create(self, path: Path) -> BinaryIO:
        with self._recorded("create", path):
            return super().create(path)

    def fsync(self, path: Path) -> None:
        with self._recorded("fsync", path):
            inode = os.stat(path).st_ino  # only recorded: no power is cut here
            if path.is_dir():
                self._names.flush(inode)
            elif inode in self._written:
                self._flushed[inode] = self._written.pop(inode)

    def link(self, source: Path, target: Path) -> None:
        with self._recorded("link", target):
            super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        with self._recorded("replace", target):
            inode = os.stat(source).st_ino
            super().replace(source, target)
            self._change(source, target, inode)

    def unlink(self, path: Path) -> None:
        with self._recorded("unlink", path):
            super().unlink(path)

    def make_folder(self, path: Path) -> None:
        with self._recorded("make_folder", path):
            super().make_folder(path)


class PowerCut(BaseException):
    """A simulated power cut; not an Exception, so that no handler catches it."""


class CutDisk(RecordingDisk):
    """Performs so many operations and raises PowerCut at every later one.

    The last moment is that of the cut.
    """

    def __init__(self, top: Path, root: Path, operations: int) -> None:
        super().__init__(top, root)
        self._left = operations

    def record(self, about_to: str) -> None:
        if self._left >= 0:
            super().record(about_to)
        self._left -= 1
        if self._left < 0:
            raise PowerCut(about_to)
