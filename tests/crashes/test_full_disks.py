"""A disk that is full, read-only or failing: one line, exit code 2, and the next run resumes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from pipelines import encode
from tests.crashes.disk_doubles import FailingDisk, MisreportingDisk, Step, installed
from tests.crashes.sabotaged import WorkerOnAFullDisk
from tests.crashes.scenarios import Scenario

ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO")


def why_not_one_line(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Why the command did not end with one line and exit code 2; "" if it did."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if "rror" in line]
    good = (
        code == 2
        and len(errors) == 1
        and errors[0].startswith("error: ")
        and lines[-1] == errors[0]
    )
    return "" if good else f"exit code {code}: {lines}"


def ending(
    scenario: Scenario, out: Path, step: Step, error: int, capsys: pytest.CaptureFixture[str]
) -> str:
    """What is wrong after an error at `step` and another run; "" if nothing."""
    scenario.prepare(out)
    with installed(FailingDisk(out, step, error, lasting=True)):
        code = encode.main(scenario.words(out))
    if why := why_not_one_line(code, capsys):
        return why
    if code := scenario.run_here(out):
        return f"exit code {code} once the disk works"
    names = scenario.differing(out)
    return f"differs in {names}" if names else ""


def endings(
    scenario: Scenario,
    out: Path,
    steps: Iterable[Step],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, str]:
    """The problems after error `name` at each of some steps, where there are any."""
    error = getattr(errno, name)
    # A full disk can still remove files; a file that cannot be removed is left for later.
    steps = [step for step in steps if not step.name.startswith("unlink")]
    assert steps
    all_ = {str(step): ending(scenario, out, step, error, capsys) for step in steps}
    return {step: ending for step, ending in all_.items() if ending}


@pytest.mark.parametrize("name", ERRORS)
def test_disk_error_ends_the_run_in_one_line_and_the_next_run_resumes(
    fresh: Scenario, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [step for step in fresh.steps if not step.occurrence]
    chosen = first[
        ERRORS.index(name) :: 2 * len(ERRORS)
    ]  # each kind of step with one of the errors
    assert not endings(fresh, tmp_path / "codes.zarr", chosen, name, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("scenario", ["fresh", "extended"], indirect=True)
def test_disk_error_at_any_step_does_too(
    scenario: Scenario, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not endings(scenario, tmp_path / "codes.zarr", scenario.steps, name, capsys)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_worker_on_a_full_disk_ends_the_run_in_one_line(
    fresh: Scenario,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    full = partial(WorkerOnAFullDisk, step=Step("link part"), error=errno.ENOSPC)
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.encoding.job.EncodeWorker", full)
        assert not why_not_one_line(fresh.run_here(out, workers=1), capsys)
    assert fresh.run(out) == 0
    assert not fresh.differing(out)


@pytest.mark.parametrize("error", [FileExistsError, OSError, TimeoutError])
@pytest.mark.parametrize("name", ["link part", "link plan part"])
def test_a_link_reported_as_failed_counts_as_made(
    fresh: Scenario, name: str, error: type[OSError], tmp_path: Path
) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    with installed(MisreportingDisk(out, name, error)) as disk:
        assert fresh.run_here(out) == 0
    assert isinstance(disk, MisreportingDisk)
    assert disk.misreports
    assert not fresh.differing(out)
