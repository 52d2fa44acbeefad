"""Scenario: a run of the encode command that tests interrupt, and the store it should make."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

from ops.disk import Disk
from pipelines import encode
from pipelines.encoding.worker import EncodeWorker
from pipelines.jobs.queue import Piece
from pipelines.planning.plan import read_plan
from tests.crashes.disk_doubles import KillingDisk, ListingDisk, Step, WatchedDisk, read_steps
from tests.crashes.encode_processes import flags, run_encode
from tests.encode_run import everything


def differing(store: Path, uninterrupted: dict[str, bytes]) -> list[str]:
    """The files in which a store differs from an uninterrupted one; [] if byte-identical."""
    found = everything(store)
    names = found.keys() | uninterrupted.keys()
    return sorted(name for name in names if found.get(name) != uninterrupted.get(name))


@dataclass(frozen=True)
class Scenario:
    """Encoding `images` on top of the store `base`, or from nothing."""

    images: Path
    tokenizer: Path
    base: Path | None = None
    changed: dict[str, object] = field(default_factory=dict)
    finished: Path = Path()  # the store of an uninterrupted run
    uninterrupted: dict[str, bytes] = field(default_factory=dict)  # its files by name
    steps: tuple[Step, ...] = ()  # of its disk

    def prepare(self, out: Path) -> Path:
        """Make `out` what it is before the command; returns `out`."""
        shutil.rmtree(out, ignore_errors=True)
        if self.base is not None:
            shutil.copytree(self.base, out)
        return out

    def words(self, out: Path, **changed: object) -> list[str]:
        return flags(self.images, out, self.tokenizer, **{**self.changed, **changed})

    def run(self, out: Path, disk: Disk | None = None) -> int:
        """Run the command in another process; its exit code."""
        return run_encode(self.words(out), disk or WatchedDisk(out))

    def run_here(self, out: Path, **changed: object) -> int:
        """Run the command in this process; its exit code."""
        return encode.main(self.words(out, **changed))

    def differing(self, out: Path) -> list[str]:
        """The files in which `out` differs from the uninterrupted store."""
        return differing(out, self.uninterrupted)


def run_uninterrupted(scenario: Scenario, out: Path) -> Scenario:
    """The scenario with the files and steps of an uninterrupted run into `out`."""
    out.parent.mkdir(exist_ok=True)
    steps = out.with_name("steps.txt")
    scenario.prepare(out)
    code = scenario.run(out, ListingDisk(out, steps))
    assert code == 0, f"encode alone ended with exit code {code}"
    return replace(
        scenario, finished=out, uninterrupted=everything(out), steps=tuple(read_steps(steps))
    )


def plan_only(scenario: Scenario, out: Path) -> Path:
    """A store with a plan only: the driver is killed at the first step of the first task."""
    scenario.prepare(out)
    first = next(step for step in scenario.steps if "staged" in step.name)
    assert scenario.run(out, KillingDisk(out, first)) == -signal.SIGKILL
    return out


def run_task(root: Path, number: int, shift: int = 0) -> int:
    """One attempt at one task, as a worker runs it; `shift` is added to its codes."""
    plan = read_plan(root)
    assert plan is not None
    worker = EncodeWorker(root)
    if shift:
        right, size = worker.tokenizer.encode, worker.tokenizer.config.codebook_size
        worker.tokenizer.encode = lambda pixels, **_: (right(pixels) + shift) % size  # type: ignore[method-assign]
    task = plan.tasks[number]
    worker.run(Piece(task=task, first=0, end=task.num_rows))
    return 0
