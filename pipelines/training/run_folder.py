"""RunFolder: where a training run is written, on a disk or in an object store.

A run in an object store works in a local folder, which every start makes equal to what the store
has. A checkpoint is uploaded when it is complete here, the metrics, images and TensorBoard events
before it: between two checkpoints the store does not change. So a run can go on from the store
alone, on any machine, and what a killed process had not uploaded is made again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ops import paths
from ops.cache_folder import CACHE_VARIABLE, cache_folder
from ops.checkpoint import (
    best_step,
    held_out_of,
    newest_step,
    prune_steps,
    step_folder,
    step_of,
)
from ops.config import UserError
from ops.disk_errors import DiskError, disk_error_message
from ops.files import (
    atomic_path,
    exclusive_lock,
    file_hash,
    json_hash,
    make_folders,
    waited_lock,
    write_bytes,
)
from ops.paths import AnyPath, ObjectPath, below
from ops.stored_steps import (
    StoredStep,
    download_step,
    lowest_stored_loss,
    newest_stored_step,
    prune_stored_steps,
    upload_step,
)
from pipelines.store import Lease, held_lease

LOCK = ".lock"
RECORD = "run.json"
FETCHED = ".fetched"  # names the lease under which the local folder was made equal to the store
#: What a run needs to go on, besides its newest step.
NEEDED = re.compile(
    r"run\.json|metrics\.jsonl|bad_images(-\d+)?\.jsonl|stream_positions-\d+\.jsonl"
    r"|(tokenizer|track_tokenizers/[a-z][a-z0-9_]*)/[A-Za-z0-9_][A-Za-z0-9_.-]*"
)
#: What is not uploaded by itself: steps are, as wholes.
OWN = re.compile(r"\.|step-\d{8}|.*\.partial(/|$)")


class TrainingError(UserError):
    """A run that cannot start or continue."""


@dataclass(frozen=True)
class RunFolder:
    """The local folder of a run and, where it lies in an object store, its place there.

    `sent` are the time and size of each local file that was uploaded or fetched, by name. Can be
    pickled for workers.
    """

    folder: Path
    remote: ObjectPath | None = None
    lease: Lease | None = None
    sent: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def place(self) -> AnyPath:
        """The path as the user knows it."""
        return self.remote or self.folder

    def steps_done(self) -> int:
        """How many steps the newest complete checkpoint has."""
        if self.remote is not None:
            stored = newest_stored_step(self.remote)
            return stored.step if stored else 0
        newest = newest_step(self.folder)
        return step_of(newest) if newest else 0

    def lowest_loss(self) -> float:
        """The lowest held-out loss of the complete checkpoints; infinite without any."""
        if self.remote is not None:
            return lowest_stored_loss(self.remote)
        best = best_step(self.folder)
        return held_out_of(best) if best else float("inf")

    # --- from the store

    def fetch(self) -> None:
        """Make the local folder equal to what the store has of the run, once for each lease.

        The processes of a machine wait for each other. Raises DiskError where the disk refuses,
        CheckpointError where the newest step is corrupt.
        """
        if self.remote is None or self.lease is None:
            return
        with self._disk_errors():
            make_folders(self.folder)
            with waited_lock(self.folder / ".fetching"):
                mark = self.folder / FETCHED
                if not paths.holds(mark, self.lease.data):
                    self._fetch_files(self.remote)
                    write_bytes(mark, self.lease.data)
                newest = newest_stored_step(self.remote)
                if newest is not None and self._lacks(newest):
                    with atomic_path(step_folder(self.folder, newest.step)) as partial:
                        partial.mkdir()
                        download_step(newest, partial)

    def _fetch_files(self, remote: ObjectPath) -> None:
        stored = newest_stored_step(remote)
        for path in self.folder.iterdir():
            if path.name in (LOCK, ".fetching"):
                continue
            if stored is None or path != step_folder(self.folder, stored.step):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for found in paths.find_files(remote):
            name = below(found.path, remote)
            if NEEDED.fullmatch(name):
                paths.copy(found.path, self.folder / name)
        self.sent.update(self._local_files())

    def _lacks(self, stored: StoredStep) -> bool:
        """Whether there is no such step folder here, or one with other content."""
        folder = step_folder(self.folder, stored.step)
        return any(
            not (folder / name).is_file() or file_hash(folder / name) != each.sha256
            for name, each in stored.files.items()
        )

    # --- to the store

    def publish(self, step: int, keep: int) -> None:
        """Upload what is new of the run and its checkpoint after `step` steps, then prune steps.

        Raises LockedError where another process has taken the run over, StepConflictError where it
        has written this step.
        """
        if self.remote is not None:
            self.publish_files()
            self._check_lease()
            upload_step(step_folder(self.folder, step), self.remote)
            prune_stored_steps(self.remote, keep)
        prune_steps(self.folder, keep)

    def publish_files(self) -> None:
        """Upload the files that are new or have changed, but for checkpoints."""
        if self.remote is None:
            return
        self._check_lease()
        found = self._local_files()
        new = [name for name, state in found.items() if self.sent.get(name) != state]
        # A model's config.json last: then its weights are there.
        for name in sorted(new, key=lambda name: (name.endswith("config.json"), name)):
            paths.copy(self.folder / name, self.remote / name)
            self.sent[name] = found[name]

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def _local_files(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not OWN.match(name):
                state = path.stat()
                found[name] = state.st_mtime_ns, state.st_size
        return found

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(
                f"{disk_error_message(error, self.folder)} Or name another folder for such copies "
                f"by the environment variable {CACHE_VARIABLE}."
            ) from error


@contextlib.contextmanager
def opened_run(out: AnyPath) -> Iterator[RunFolder]:
    """The folder of a run at `out`, locked against other processes.

    Raises LockedError where another process trains there; of an object store TrainingError where
    `out` has other objects, and ExclusiveCreateError where two writers could not be kept apart.
    """
    if not isinstance(out, ObjectPath):
        with exclusive_lock(out / LOCK):
            yield RunFolder(out)
        return
    _check_place(out)
    paths.check_exclusive_create(out)
    folder = cache_folder("runs", json_hash(str(out))[:16])
    with exclusive_lock(folder / LOCK), held_lease(out / LOCK) as lease:
        run = RunFolder(folder, out, lease)
        run.fetch()
        try:
            yield run
        except BaseException:
            with contextlib.suppress(UserError, OSError):  # the first error is the one to raise
                run.publish_files()
            raise
        run.publish_files()


def _check_place(out: ObjectPath) -> None:
    if not out.key:
        raise TrainingError(f"{out} is a whole bucket. Name a run in it: {out}/run.")
    found = {below(each.path, out).split("/")[0] for each in paths.list_objects(out)}
    if found - {LOCK} and RECORD not in found:
        raise TrainingError(f"{out} has other objects below it. Name another --out.")
