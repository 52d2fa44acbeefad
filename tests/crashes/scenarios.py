"""One run of the encode command that tests disturb, and the store it makes when left alone."""

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


def differing(store: Path, undisturbed: dict[str, bytes]) -> list[str]:
    """The files in which a store differs from an undisturbed one; [] when byte-identical."""
    found = everything(store)
    names = found.keys() | undisturbed.keys()
    return sorted(name for name in names if found.get(name) != undisturbed.get(name))


@dataclass(frozen=True)
class Scenario:
    """Encoding `images` on top of the store `base`, or from nothing."""

    images: Path
    tokenizer: Path
    base: Path | None = None
    changed: dict[str, object] = field(default_factory=dict)
    finished: Path = Path()  # where the undisturbed store lies,
    undisturbed: dict[str, bytes] = field(default_factory=dict)  # its files,
    steps: tuple[Step, ...] = ()  # and what its disk was asked for

    def prepare(self, out: Path) -> Path:
        """Make `out` what it is before the command, whatever it was; `out` again."""
        shutil.rmtree(out, ignore_errors=True)
        if self.base is not None:
            shutil.copytree(self.base, out)
        return out

    def words(self, out: Path, **changed: object) -> list[str]:
        return flags(self.images, out, self.tokenizer, **{**self.changed, **changed})

    def run(self, out: Path, disk: Disk | None = None) -> int:
        """Run the command in a process of its own; its exit code."""
        return run_encode(self.words(out), disk or WatchedDisk(out))

    def run_here(self, out: Path, **changed: object) -> int:
        """Run the command in this process, on this process's disk; its exit code."""
        return encode.main(self.words(out, **changed))

    def differing(self, out: Path) -> list[str]:
        """The files in which `out` differs from the undisturbed store."""
        return differing(out, self.undisturbed)


def run_undisturbed(scenario: Scenario, out: Path) -> Scenario:
    """The scene with what its command makes of `out` when nothing disturbs it."""
    out.parent.mkdir(exist_ok=True)
    steps = out.with_name("steps.txt")
    scenario.prepare(out)
    code = scenario.run(out, ListingDisk(out, steps))
    assert code == 0, f"encode alone ended with exit code {code}"
    return replace(
        scenario, finished=out, undisturbed=everything(out), steps=tuple(read_steps(steps))
    )


def plan_only(scenario: Scenario, out: Path) -> Path:
    """The store as far as its plan: the driver is killed when the first task touches the disk."""
    scenario.prepare(out)
    first = next(step for step in scenario.steps if "staged" in step.name)
    assert scenario.run(out, KillingDisk(out, first)) == -signal.SIGKILL
    return out


def run_task(root: Path, number: int, shift: int = 0) -> int:
    """One attempt at one task, as a worker makes it; with `shift` its codes are wrong by that."""
    plan = read_plan(root)
    assert plan is not None
    worker = EncodeWorker(root)
    if shift:
        right, size = worker.tokenizer.encode, worker.tokenizer.config.codebook_size
        worker.tokenizer.encode = lambda pixels: (right(pixels) + shift) % size  # type: ignore[method-assign]
    task = plan.tasks[number]
    worker.run(Piece(task=task, first=0, end=task.num_rows))
    return 0
