"""Disks that kill, stop, fail or misreport at one named step, in the place of `ops.disk.disk`.

A step's name is the operation and the kind of file it touches, "link part" or "fsync staging
folder"; links and renames are named for their target. Steps are identified by name and occurrence,
not by a running number, so that the order of threads does not move a failpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import ops.disk
from ops.disk import Disk

HEX = re.compile(r"[0-9a-f]{8,}")
FORMS = [
    (r"_plan/\d+\.parquet", "plan part"),
    (r"_plan/\d+\.parquet\..*", "temporary plan part"),
    (r"_plan", "plan folder"),
    (r"_tombstones/\d+\.parquet", "tombstone part"),
    (r"_tombstones/\d+\.parquet\..*", "temporary tombstone part"),
    (r"_tombstones", "tombstone folder"),
    (r"_index/\d+x\d+/\d+\.parquet", "part"),
    (r"_index/\d+x\d+", "index folder"),
    (r"_index", "folder of index folders"),
    (r"_staging/[^/]*\.shard", "staged shard"),
    (r"_staging/[^/]*\.shard\..*", "temporary staged shard"),
    (r"_staging/[^/]*\.parquet.*", "staged part"),
    (r"_staging", "staging folder"),
    (r"_staging/.*", "staged file"),
    (r"_tokenizer.*", "tokenizer"),
    (r"_checksums\.json", "checksums"),
    (r"_checksums\.json\..*", "temporary checksums"),
    (r"g\d+x\d+/\w+/c/\d+/0/0", "shard"),
    (r"g\d+x\d+/\w+/c/\d+/0", "shard folder"),
    (r"g\d+x\d+(/\w+(/c(/\d+)?)?)?", "array folder"),
    (r"(.*/)?zarr\.json", "metadata"),
    (r"(.*/)?zarr\.json\..*", "temporary metadata"),
    (r"_tracks", "folder of tracks"),
    (r"_source\.json", "source"),
    (r"_source\.json\..*", "temporary source"),
    (r"\.", "store folder"),
]
TRACK = re.compile(r"_tracks/\w+(?=/|$)")
KINDS = [(re.compile(form), kind) for form, kind in FORMS]


def kind_of(root: Path, path: Path) -> str:
    """The kind of file of the store at `root` that a path is, for naming steps."""
    if not path.is_relative_to(root):
        return "outside"
    name = path.relative_to(root).as_posix()
    further = TRACK.match(name)  # a track directory has the layout of a store
    if further:
        return f"track's {kind_of(root / further[0], path)}"
    return next((kind for form, kind in KINDS if form.fullmatch(name)), HEX.sub("*", name))


class Step(NamedTuple):
    """The `occurrence`-th operation (from 0) of one name in a process."""

    name: str
    occurrence: int = 0

    def __str__(self) -> str:
        return f"{self.name} #{self.occurrence}"


NEVER = Step("never")


class WatchedDisk(Disk):
    """Performs every operation and calls `before` and `after` with its step.

    Except fsync, which is announced but not performed: files outlast a killed process without it,
    and it costs time. Power cuts have another disk.
    """

    counting = threading.Lock()  # the class's, so that a disk can be sent to another process

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: Counter[str] = Counter()

    def before(self, step: Step) -> None:
        pass

    def after(self, step: Step) -> None:
        pass

    def opened(self, step: Step, file: BinaryIO) -> BinaryIO:
        """The file that the caller of `create` gets."""
        return file

    @contextlib.contextmanager
    def _watched(self, operation: str, path: Path) -> Iterator[Step]:
        name = f"{operation} {kind_of(self.root, path)}"
        with self.counting:
            step = Step(name, self.seen[name])
            self.seen[name] += 1
        self.before(step)
        yield step
        self.after(step)

    def create(self, path: Path) -> BinaryIO:
        with self._watched("create", path) as step:
            file = super().create(path)
        return self.opened(step, file)

    def fsync(self, path: Path) -> None:
        with self._watched("fsync", path):
            path.stat()  # fails for a missing file, as fsync does

    def link(self, source: Path, target: Path) -> None:
        with self._watched("link", target):
            super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        with self._watched("replace", target):
            super().replace(source, target)

    def unlink(self, path: Path) -> None:
        with self._watched("unlink", path):
            super().unlink(path)

    def make_folder(self, path: Path) -> None:
        with self._watched("make_folder", path):
            super().make_folder(path)


class ListingDisk(WatchedDisk):
    """Lists the steps of an uninterrupted run, also in a file, for child processes."""

    def __init__(self, root: Path, file: Path | None = None) -> None:
        super().__init__(root)
        self.steps: list[Step] = []
        self.file = file

    def before(self, step: Step) -> None:
        self.steps.append(step)
        if self.file:
            with open(self.file, "a") as file:
                file.write(f"{step.name}\t{step.occurrence}\n")


def read_steps(file: Path) -> list[Step]:
    """The steps in the file of a ListingDisk."""
    lines = (line.rsplit("\t", 1) for line in file.read_text().splitlines())
    return [Step(name, int(occurrence)) for name, occurrence in lines]


class SignallingDisk(WatchedDisk):
    """Sends its own process a signal before or after one step, or in the middle of a write."""

    signal = signal.SIGKILL

    def __init__(
        self, root: Path, step: Step, when: Literal["before", "during", "after"] = "before"
    ) -> None:
        super().__init__(root)
        self.step, self.when = step, when

    def send(self) -> None:
        os.kill(os.getpid(), self.signal)
        time.sleep(0.05)  # another thread may receive it: do not go on meanwhile

    def before(self, step: Step) -> None:
        if (step, self.when) == (self.step, "before"):
            self.send()

    def after(self, step: Step) -> None:
        if (step, self.when) == (self.step, "after"):
            self.send()

    def opened(self, step: Step, file: BinaryIO) -> BinaryIO:
        if (step, self.when) == (self.step, "during"):
            return _HalfWritten(file, self.send)  # type: ignore[return-value]
        return file


class KillingDisk(SignallingDisk):
    """Kills the process at the step (SIGKILL): no handler runs, nothing is cleaned up."""


class StoppingDisk(SignallingDisk):
    """Stops the process at the step (SIGSTOP) until it is sent SIGCONT: a zombie."""

    signal = signal.SIGSTOP


class _HalfWritten:
    """A file whose first write stops half way, where `stopped` is called."""

    def __init__(self, file: BinaryIO, stopped: Callable[[], None]) -> None:
        self._file, self._stopped = file, stopped

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._stopped()
        return half + self._file.write(data[half:])

    def __enter__(self) -> _HalfWritten:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class FailingDisk(WatchedDisk):
    """Raises an OSError instead of one step, and with `lasting` instead of all later ones too.

    Files can still be removed, except on a read-only disk.
    """

    def __init__(self, root: Path, step: Step, error: int, lasting: bool = False) -> None:
        super().__init__(root)
        self.step, self.error, self.lasting = step, error, lasting
        self.failed = False

    def before(self, step: Step) -> None:
        if step.name.startswith("unlink") and self.error != errno.EROFS:
            return
        if step == self.step or (self.lasting and self.failed):
            self.failed = True
            raise OSError(self.error, os.strerror(self.error), str(self.root / step.name))


class LinklessDisk(KillingDisk):
    """A disk without hard links, as vfat; kills the process at a step, if one is given."""

    def __init__(
        self,
        root: Path,
        step: Step = NEVER,
        when: Literal["before", "during", "after"] = "before",
        error: int = errno.EPERM,
    ) -> None:
        super().__init__(root, step, when)
        self.error = error

    def link(self, source: Path, target: Path) -> None:
        raise OSError(self.error, os.strerror(self.error), str(source), None, str(target))

    def makes_links(self, folder: Path) -> bool:
        return False


class MisreportingDisk(WatchedDisk):
    """Performs a step and then reports failure, as network file systems may for a link."""

    def __init__(self, root: Path, name: str, error: type[OSError] = FileExistsError) -> None:
        super().__init__(root)
        self.name, self.error = name, error
        self.misreports = 0

    def after(self, step: Step) -> None:
        if step.name == self.name:
            self.misreports += 1
            raise self.error(f"reported as failed: {step}")


@contextlib.contextmanager
def installed(disk: Disk) -> Iterator[Disk]:
    """Make all durable operations go through `disk` inside the context."""
    before = ops.disk.disk
    ops.disk.disk = disk
    try:
        yield disk
    finally:
        ops.disk.disk = before
