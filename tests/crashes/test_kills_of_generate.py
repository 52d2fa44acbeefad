"""kill -9 of the generate command: at the steps of its disk, and at random moments.

What the same command makes of the folder afterwards is compared with a folder that nothing
disturbed, byte by byte.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import generate
from prior import StartOfSequence
from tests.crashes.disk_doubles import KillingDisk, ListingDisk, Step, WatchedDisk, read_steps
from tests.crashes.encode_processes import exit_code, start
from tests.generate_run import everything, make_run, words


@dataclass(frozen=True)
class Painting:
    """One generate command, the folder it makes when left alone, and what its disk is asked for."""

    run: Path
    undisturbed: dict[str, bytes]
    steps: tuple[Step, ...]

    def words(self, out: Path) -> list[str]:
        return flags(self.run, out)

    def differing(self, out: Path) -> list[str]:
        found = everything(out)
        names = found.keys() | self.undisturbed.keys()
        return sorted(name for name in names if found.get(name) != self.undisturbed.get(name))

    def killed_at(self, out: Path, step: Step) -> list[str]:
        """Kill the command at a step and run it to its end; the files that are not as they were."""
        shutil.rmtree(out, ignore_errors=True)
        first = start(generate.main, self.words(out), disk=KillingDisk(out, step, "after"))
        assert exit_code(first) == -signal.SIGKILL, step
        assert exit_code(start(generate.main, self.words(out), disk=WatchedDisk(out))) == 0, step
        return self.differing(out)


def flags(run: Path, out: Path) -> list[str]:
    saves = ["--save", "images,codes,tars", "--samples-per-task", 4]
    return words(run, out, "--count", 7, "--batch-size", 2, *saves)


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Painting:
    folder = tmp_path_factory.mktemp("painting")
    run, out = make_run(folder / "run", StartOfSequence()), folder / "out"
    disk = ListingDisk(out, folder / "steps.txt")
    assert exit_code(start(generate.main, flags(run, out), disk=disk)) == 0
    return Painting(run, everything(out), tuple(read_steps(folder / "steps.txt")))


DECISIVE = (
    "replace staged file",
    "replace tars/00000.tar",
    "link codes.zarr/_index/2x3/0.parquet",
    "link index/00000.parquet",
)


@pytest.mark.parametrize("name", DECISIVE)
def test_killed_at_a_decisive_step_it_goes_on_to_the_same_bytes(
    name: str, painting: Painting, tmp_path: Path
) -> None:
    assert not painting.killed_at(tmp_path / "out", Step(name))


@pytest.mark.slow
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(
    painting: Painting, tmp_path: Path
) -> None:
    steps = [step for step in painting.steps if not step.name.startswith("fsync")]
    assert len(steps) > 50
    for step in steps:
        assert not painting.killed_at(tmp_path / "out", step), step


def kill_at_random(painting: Painting, out: Path, kills: int, draw: random.Random) -> list[str]:
    """Kill command after command at random moments, then run one to its end."""
    began = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    assert exit_code(start(generate.main, painting.words(out))) == 0
    span = time.monotonic() - began
    shutil.rmtree(out)
    while kills:
        process = start(generate.main, painting.words(out))
        process.join(draw.uniform(0, span))
        process.kill()
        if exit_code(process) == 0:
            shutil.rmtree(out)
        else:
            kills -= 1
    assert exit_code(start(generate.main, painting.words(out))) == 0
    return painting.differing(out)


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(
    painting: Painting, tmp_path: Path
) -> None:
    assert not kill_at_random(painting, tmp_path / "out", kills=2, draw=random.Random(0))


@pytest.mark.slow
def test_killed_at_many_random_moments_it_goes_on_to_the_same_bytes(
    painting: Painting, tmp_path: Path
) -> None:
    draw = random.Random(1)
    for number in range(20):
        kills = draw.randint(1, 4)
        assert not kill_at_random(painting, tmp_path / "out", kills, draw), number


def test_two_drivers_at_once_make_one_folder(painting: Painting, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [start(generate.main, painting.words(out)) for _ in range(3)]
    codes = sorted(map(exit_code, processes))
    assert codes[0] == 0
    assert set(codes) <= {0, 2}  # one that came later found all done, or was refused
    assert not painting.differing(out)
