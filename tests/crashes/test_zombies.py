"""A worker stopped at any step of its commit changes nothing when it resumes later."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.crashes.disk_doubles import Step, StoppingDisk
from tests.crashes.encode_processes import exit_code, run_encode, start_encode, wait_until_stopped
from tests.crashes.scenarios import Scenario
from tests.crashes.zombies import ZombieTrial
from tests.encode_run import everything


def check_steps(trial: ZombieTrial, out: Path, steps: list[Step], shift: int, whole: bool) -> None:
    troubles = {str(s): trial.trouble(out, s, shift=shift, whole=whole) for s in steps}
    assert len(troubles) > 4
    assert not {step: trouble for step, trouble in troubles.items() if trouble}


@pytest.mark.parametrize(("shift", "whole"), [(0, True), (1, False)])
def test_a_zombie_stopped_at_any_kind_of_step_changes_nothing(
    zombie_trial: ZombieTrial, tmp_path: Path, shift: int, whole: bool
) -> None:
    first = [step for step in zombie_trial.steps if not step.occurrence]
    check_steps(zombie_trial, tmp_path / "codes.zarr", first[shift::2], shift, whole)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_zombie_stopped_at_any_step_changes_nothing(
    zombie_trial: ZombieTrial, tmp_path: Path, shift: int, whole: bool
) -> None:
    check_steps(zombie_trial, tmp_path / "codes.zarr", zombie_trial.steps, shift, whole)


def test_a_stopped_driver_keeps_the_lock_and_finishes_later(
    fresh: Scenario, tmp_path: Path
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
