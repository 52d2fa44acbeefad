"""Zombies: attempts at a task that are stopped during the commit and resume after another's."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines import verify
from tests.crashes.disk_doubles import ListingDisk, Step, StoppingDisk, WatchedDisk, read_steps
from tests.crashes.encode_processes import exit_code, start, wait_until_stopped
from tests.crashes.scenarios import Scenario, plan_only, run_task
from tests.encode_run import everything


def outside_staging(root: Path) -> dict[str, bytes]:
    """Every file of a store except the staged ones."""
    return {name: data for name, data in everything(root).items() if "_staging" not in name}


@dataclass(frozen=True)
class ZombieTrial:
    """A scenario with a store that is only planned, and the steps of its first task's commit."""

    scenario: Scenario
    store: Path
    steps: list[Step]

    def trouble(
        self,
        out: Path,
        step: Step,
        *,
        shift: int,
        whole: bool,
        make_disk: type[StoppingDisk] = StoppingDisk,
        attempt: Callable[[Path, int, int], int] = run_task,
    ) -> str:
        """What a zombie changed that was stopped at `step`; "" when nothing.

        Meanwhile another attempt runs the same task, or with `whole` another driver all tasks.
        The zombie's codes differ by `shift`.
        """
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.store, out)
        zombie = start(attempt, out, 0, shift, disk=make_disk(out, step))
        if not wait_until_stopped(zombie):
            return f"no zombie: exit code {exit_code(zombie)}"
        if whole:
            code = self.scenario.run(out)
        else:
            code = exit_code(start(attempt, out, 0, 0, disk=WatchedDisk(out)))
        before = outside_staging(out)
        os.kill(zombie.pid or 0, signal.SIGCONT)
        exit_code(zombie)  # it may find its staged files removed
        after = outside_staging(out)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        if code or changed:
            return f"the other attempt ended with {code}, the zombie changed {changed}"
        return self.trouble_afterwards(out, shift)

    def trouble_afterwards(self, out: Path, shift: int) -> str:
        """What is wrong with a store once the command has run to its end; "" when nothing."""
        if code := self.scenario.run(out):
            return f"exit code {code} afterwards"
        if verify.main([str(out)]):
            return "the store does not verify"
        # The zombie may have committed before it was stopped, with its shifted codes.
        names = [] if shift else self.scenario.differing(out)
        return f"differs in {names}" if names else ""


def prepare_trial(scenario: Scenario, folder: Path) -> ZombieTrial:
    """Plan the scenario's store below `folder` and list the disk's steps in a commit."""
    store = plan_only(scenario, folder / "codes.zarr")
    rehearsal = shutil.copytree(store, folder / "rehearsal.zarr")
    disk = ListingDisk(rehearsal, folder / "steps.txt")
    assert exit_code(start(run_task, rehearsal, 0, disk=disk)) == 0
    return ZombieTrial(scenario, store, read_steps(folder / "steps.txt"))
