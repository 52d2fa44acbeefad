"""Disks and workers with one safeguard taken away, to show that the proofs can fail."""

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
    """A disk that is never asked to flush one kind of file or folder."""

    class NeverFlushing(RecordingDisk):
        def fsync(self, path: Path) -> None:
            if kind_of(self.root, path) != kind:
                super().fsync(path)

    return NeverFlushing


class LinkingFirst(RecordingDisk):
    """The part gets its name before the shard that it names has its own."""

    def __init__(self, top: Path, root: Path) -> None:
        super().__init__(top, root)
        self._put_off: list[tuple[Path, Path]] = []

    def replace(self, source: Path, target: Path) -> None:
        if kind_of(self.root, target) == "staged shard":
            self._put_off.append((source, target))
        else:
            super().replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        if kind_of(self.root, target) == "part":
            while self._put_off:
                super().replace(*self._put_off.pop())


class OverwritingDisk(StoppingDisk):
    """Links are not exclusive: who comes last wins."""

    def link(self, source: Path, target: Path) -> None:
        with self._watched("link", target):
            target.unlink(missing_ok=True)
            target.hardlink_to(source)


def run_task_with_one_name(root: Path, number: int, shift: int = 0) -> int:
    """An attempt at a task whose shard has the same name whatever it holds."""
    one = SimpleNamespace(hexdigest=lambda: "0" * 64)
    namespace = SimpleNamespace(**{**vars(hashlib), "sha256": lambda _: one})
    with mock.patch.object(commit, "hashlib", namespace):
        return run_task(root, number, shift)


def encode_without_lock(words: list[str]) -> int:
    """The command where nobody heeds the lock."""
    with mock.patch.object(fcntl, "flock"):
        return encode.main(words)
