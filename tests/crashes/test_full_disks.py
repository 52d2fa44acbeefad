"""A disk that is full, read-only or forbidden: one line, exit code 2, and the next run goes on."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from pipelines import encode
from tests.crashes.disk_doubles import FailingDisk, LyingDisk, Step, installed
from tests.crashes.sabotaged import WorkerOnAFullDisk
from tests.crashes.scenarios import Scenario

ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO")


def why_not_one_line(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with how the command ended on an error; "" for one line and exit code 2."""
    lines = capsys.readouterr().err.splitlines()
    condition_inputs = [line for line in lines if "rror" in line]
    good = (
        code == 2
        and len(condition_inputs) == 1
        and condition_inputs[0].startswith("error: ")
        and lines[-1] == condition_inputs[0]
    )
    return "" if good else f"exit code {code}: {lines}"


def ending(
    scenario: Scenario, out: Path, step: Step, error: int, capsys: pytest.CaptureFixture[str]
) -> str:
    """What is wrong with how the command ends on an error at `step` and then goes on; or ""."""
    scenario.prepare(out)
    with installed(FailingDisk(out, step, error, lasting=True)):
        code = encode.main(scenario.words(out))
    if why := why_not_one_line(code, capsys):
        return why
    if code := scenario.run_here(out):
        return f"exit code {code} with room made"
    names = scenario.differing(out)
    return f"differs in {names}" if names else ""


def endings(
    scenario: Scenario,
    out: Path,
    steps: Iterable[Step],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, str]:
    """The bad ones among the endings on error `name` at some steps."""
    error = getattr(errno, name)
    # A name can be removed where there is no room; what cannot be removed is left for later.
    steps = [step for step in steps if not step.name.startswith("unlink")]
    assert steps
    all_ = {str(step): ending(scenario, out, step, error, capsys) for step in steps}
    return {step: ending for step, ending in all_.items() if ending}


@pytest.mark.parametrize("name", ERRORS)
def test_a_failing_disk_ends_the_run_in_one_line_and_room_lets_it_go_on(
    fresh: Scenario, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [step for step in fresh.steps if not step.occurrence]
    chosen = first[ERRORS.index(name) :: 2 * len(ERRORS)]  # many kinds of steps, each with one
    assert not endings(fresh, tmp_path / "codes.zarr", chosen, name, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("scenario", ["fresh", "extended"], indirect=True)
def test_a_disk_that_fails_at_any_step_does_too(
    scenario: Scenario, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not endings(scenario, tmp_path / "codes.zarr", scenario.steps, name, capsys)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_worker_on_a_full_disk_ends_the_run_in_one_line_too(
    fresh: Scenario,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    full = partial(WorkerOnAFullDisk, step=Step("link part"), error=errno.ENOSPC)
    with monkeypatch.context() as patched:
        patched.setattr(encode, "EncodeWorker", full)
        assert not why_not_one_line(fresh.run_here(out, workers=1), capsys)
    assert fresh.run(out) == 0
    assert not fresh.differing(out)


@pytest.mark.parametrize("error", [FileExistsError, OSError, TimeoutError])
@pytest.mark.parametrize("name", ["link part", "link plan part"])
def test_a_link_that_was_made_and_reported_as_failed_counts_as_made(
    fresh: Scenario, name: str, error: type[OSError], tmp_path: Path
) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    with installed(LyingDisk(out, name, error)) as disk:
        assert fresh.run_here(out) == 0
    assert isinstance(disk, LyingDisk)
    assert disk.lies
    assert not fresh.differing(out)
