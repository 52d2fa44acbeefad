"""A worker stopped at any step of its commit wakes after another attempt: it changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from pipelines import verify
from tests.crashes.disk_doubles import ListingDisk, Step, StoppingDisk, WatchedDisk, read_steps
from tests.crashes.encode_processes import (
    exit_code,
    run_encode,
    start,
    start_encode,
    wait_until_stopped,
)
from tests.crashes.scenes import Scene, plan_only, run_task
from tests.encode_run import everything


class Planned(NamedTuple):
    """A store that is planned and no more, and the steps of the commit of its first task."""

    store: Path
    steps: list[Step]


@pytest.fixture(scope="module")
def planned(fresh: Scene, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    folder = tmp_path_factory.mktemp("planned")
    store = plan_only(fresh, folder / "codes.zarr")
    trial = shutil.copytree(store, folder / "trial.zarr")
    disk = ListingDisk(trial, folder / "steps.txt")
    assert exit_code(start(run_task, trial, 0, disk=disk)) == 0
    return Planned(store, read_steps(folder / "steps.txt"))


def outside_staging(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(root).items() if "_staging" not in name}


def trouble(scene: Scene, planned: Planned, out: Path, step: Step, shift: int, whole: bool) -> str:
    """What a zombie that slept from `step` on changed; "" when nothing.

    Meanwhile another attempt makes the same task, or with `whole` another driver everything. The
    zombie's codes differ by `shift`.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(planned.store, out)
    zombie = start(run_task, out, 0, shift, disk=StoppingDisk(out, step))
    if not wait_until_stopped(zombie):
        return f"no zombie: exit code {exit_code(zombie)}"
    code = scene.run(out) if whole else exit_code(start(run_task, out, 0, disk=WatchedDisk(out)))
    before = outside_staging(out)
    os.kill(zombie.pid or 0, signal.SIGCONT)
    exit_code(zombie)  # it may find its staged files gone and say so
    changed = [n for n, data in outside_staging(out).items() if before.get(n) != data]
    gone = before.keys() - outside_staging(out).keys()
    if code or changed or gone:
        return f"the other attempt gave {code}; the zombie changed {changed}, removed {gone}"
    if code := scene.run(out):
        return f"exit code {code} afterwards"
    if verify.main([str(out)]):
        return "the store does not verify"
    # A zombie that had committed already stands, whatever its codes.
    names = [] if shift else scene.differing(out)
    return f"differs in {names}" if names else ""


@pytest.mark.parametrize(
    ("shift", "whole"),
    [
        (0, True),
        (1, False),
        pytest.param(0, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
    ],
)
def test_a_zombie_changes_nothing_when_it_wakes(
    fresh: Scene, planned: Planned, tmp_path: Path, shift: int, whole: bool
) -> None:
    out = tmp_path / "codes.zarr"
    troubles = {
        step.name: trouble(fresh, planned, out, step, shift, whole)
        for step in planned.steps
        if not step.occurrence
    }
    assert len(troubles) > 5
    assert not {step: trouble for step, trouble in troubles.items() if trouble}


def test_a_stopped_driver_keeps_its_store_and_finishes_when_it_wakes(
    fresh: Scene, tmp_path: Path
) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    step = next(step for step in fresh.steps if step.name == "link part")
    driver = start_encode(fresh.words(out), StoppingDisk(out, step))
    assert wait_until_stopped(driver)
    before = everything(out)
    assert run_encode(fresh.words(out)) == 2  # held by another process
    assert everything(out) == before
    os.kill(driver.pid or 0, signal.SIGCONT)
    assert exit_code(driver) == 0
    assert not fresh.differing(out)
