"""A disk that is full, read-only or forbidden: one line, exit code 2, and the next run goes on."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import ops.disk
from pipelines import encode
from pipelines.encode_task import EncodeWorker
from tests.crashes.disk_doubles import FailingDisk, Step, installed
from tests.crashes.scenes import Scene

ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO")


class FailingWorker(EncodeWorker):
    """A worker whose own process has a failing disk."""

    def __init__(self, root: Path, step: Step, error: int, *arguments: object) -> None:
        ops.disk.disk = FailingDisk(root, step, error)
        super().__init__(root, *arguments)


def ending(
    scene: Scene, out: Path, step: Step, error: int, capsys: pytest.CaptureFixture[str]
) -> str:
    """What is wrong with how the command ends on an error at `step` and then goes on; or ""."""
    scene.prepare(out)
    with installed(FailingDisk(out, step, error, lasting=True)):
        code = encode.main(scene.words(out))
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit code {code}: {lines}"
    if code := scene.run(out):
        return f"exit code {code} with room made"
    names = scene.differing(out)
    return f"differs in {names}" if names else ""


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("scene", ["fresh"], indirect=True)
def test_a_failing_disk_ends_the_run_in_one_line_and_room_lets_it_go_on(
    scene: Scene, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = getattr(errno, name)
    steps = [step for step in scene.steps if not step.occurrence]
    if error != errno.EROFS:
        steps = [step for step in steps if not step.name.startswith("unlink")]
    chosen = steps[ERRORS.index(name) :: len(ERRORS)]  # every step, each with another error
    endings = {
        step.name: ending(scene, tmp_path / "codes.zarr", step, error, capsys) for step in chosen
    }
    assert endings
    assert not {step: ending for step, ending in endings.items() if ending}
