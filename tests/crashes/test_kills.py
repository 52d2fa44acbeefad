"""SIGKILL of the driver at every step of its disk: the next run gives the same bytes."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.crashes.disk_doubles import KillingDisk, Step
from tests.crashes.scenarios import Scenario

Failpoint = tuple[Step, str]  # and when: before, during (a write) or after


def failpoints(steps: Iterable[Step]) -> Iterator[Failpoint]:
    """Every distinct moment: after one step is before the next, except within a write."""
    for step in steps:
        yield step, "before"
        if step.name.startswith("create"):
            yield step, "during"


def outcome_of_kill(scenario: Scenario, out: Path, failpoint: Failpoint, *more: Failpoint) -> str:
    """What is wrong after kills at the failpoints and an uninterrupted run; "" if nothing."""
    scenario.prepare(out)
    for number, (step, when) in enumerate((failpoint, *more)):
        code = scenario.run(out, KillingDisk(out, step, when))
        # A run that resumes may end before it reaches the failpoint.
        if code != -signal.SIGKILL and not (number and code == 0):
            return f"exit code {code} instead of a kill"
    if code := scenario.run(out):
        return f"exit code {code} after the kill"
    names = scenario.differing(out)
    return f"differs in {names}" if names else ""


def bad_outcomes(
    scenario: Scenario, out: Path, kills: Iterable[tuple[Failpoint, ...]]
) -> dict[str, str]:
    outcomes = {
        " then ".join(f"{when} {step}" for step, when in kill): outcome_of_kill(
            scenario, out, *kill
        )
        for kill in kills
    }
    assert outcomes
    return {kill: outcome for kill, outcome in outcomes.items() if outcome}


@pytest.mark.parametrize("scenario", ["fresh", "extended"], indirect=True)
def test_encode_killed_at_each_kind_of_change_resumes(scenario: Scenario, tmp_path: Path) -> None:
    """A kill undoes no write, so a kill before a flush equals one after it."""
    changes = [s for s in scenario.steps if not s.occurrence and not s.name.startswith("fsync")]
    kills = [((s, "during" if s.name.startswith("create") else "before"),) for s in changes]
    assert not bad_outcomes(scenario, tmp_path / "codes.zarr", kills)


def test_encode_killed_between_the_steps_of_a_track_resumes(
    tracked: Scenario, tmp_path: Path
) -> None:
    """Where names change; files are written as for the images."""
    names = ("unlink track's", "link track's", "replace track's")
    changes = [s for s in tracked.steps if not s.occurrence and s.name.startswith(names)]
    assert "unlink track's part" in {step.name for step in changes}
    assert not bad_outcomes(tracked, tmp_path / "codes.zarr", [((s, "before"),) for s in changes])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["fresh", "extended", "tracked"], indirect=True)
def test_encode_killed_before_in_or_after_any_step_resumes(
    scenario: Scenario, tmp_path: Path
) -> None:
    after = [((step, "after"),) for step in scenario.steps]
    kills = [(failpoint,) for failpoint in failpoints(scenario.steps)]
    assert not bad_outcomes(scenario, tmp_path / "codes.zarr", kills + after)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["fresh", "extended", "tracked"], indirect=True)
def test_encode_killed_while_it_resumes_resumes_again(scenario: Scenario, tmp_path: Path) -> None:
    draw = random.Random(0)
    points = list(failpoints(scenario.steps))
    kills = [tuple(draw.choices(points, k=3)) for _ in range(60)]
    assert not bad_outcomes(scenario, tmp_path / "codes.zarr", kills)
