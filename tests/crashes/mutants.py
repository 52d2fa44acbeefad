"""Disks and workers with one safeguard removed, to show that the crash tests can fail."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from pipelines import encode
from pipelines.store import commit
from tests.crashes.disk_doubles import StoppingDisk, kind_of
from tests.crashes.power_cuts import RecordingDisk
from tests.crashes.scenarios import run_task


def never_flushing(kind: str) -> type[RecordingDisk]:
    """A disk that does not flush one kind of file or folder."""

    class NeverFlushing(RecordingDisk):
        def fsync(self, path: Path) -> None:
            if kind_of(self.root, path) != kind:
                super().fsync(path)

    return NeverFlushing


class LinkingFirst(RecordingDisk):
    """Links the index part before the shard that it names has its name."""

    def __init__(self, top: Path, root: Path) -> None:
        super().__init__(top, root)
        self._postponed: list[tuple[Path, Path]] = []

    def replace(self, source: Path, target: Path) -> None:
        if kind_of(self.root, target) == "staged shard":
            self._postponed.append((source, target))
        else:
            super().replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        if kind_of(self.root, target) == "part":
            while self._postponed:
                super().replace(*self._postponed.pop())


class OverwritingDisk(StoppingDisk):
    """Links are not exclusive: the last one wins."""

    def link(self, source: Path, target: Path) -> None:
        with self._watched("link", target):
            target.unlink(missing_ok=True)
            target.hardlink_to(source)


def run_task_with_one_name(root: Path, number: int, shift: int = 0) -> int:
    """An attempt at a task whose shard's name does not depend on its content."""
    one = SimpleNamespace(hexdigest=lambda: "0" * 64)
    namespace = SimpleNamespace(**{**vars(hashlib), "sha256": lambda _: one})
    with mock.patch.object(commit, "hashlib", namespace):
        return run_task(root, number, shift)


def encode_without_lock(words: list[str]) -> int:
    """The command without its lock."""
    with mock.patch.object(fcntl, "flock"):
        return encode.main(words)
