"""SIGKILL of drivers, workers and raylets: at every step of a commit, and at random moments."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.crashes.sabotaged import WorkerThatDies
from tests.crashes.scenarios import Scenario
from tests.crashes.zombies import ZombieTrial

ROOT = Path(__file__).parents[2]
DECISIVE = ("staged shard", "staging folder", "part", "index folder", "shard", "store folder")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_workers_that_die_during_a_commit_leave_no_difference(
    fresh: Scenario, zombie_trial: ZombieTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        step
        for step in zombie_trial.steps
        if step.name.partition(" ")[2] in DECISIVE and not step.occurrence
    ]
    (tmp_path / "taken").mkdir()
    worker = partial(WorkerThatDies, steps=steps, taken=tmp_path / "taken")
    monkeypatch.setattr("pipelines.encoding.job.EncodeWorker", worker)
    out = fresh.prepare(tmp_path / "codes.zarr")
    assert fresh.run_here(out, workers=2) == 0
    assert not fresh.differing(out)
    assert len(list((tmp_path / "taken").iterdir())) == len(steps) > 4


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("kind", "rounds"), [("driver", 30), ("worker", 14), ("raylet", 8)])
def test_kills_at_random_moments_leave_no_difference(kind: str, rounds: int) -> None:
    command = [sys.executable, "-m", "tests.crashes.kill_rounds", "--kind", kind]
    done = subprocess.run(
        [*command, "--rounds", str(rounds)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical" in done.stdout
