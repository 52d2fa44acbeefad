"""SIGKILL of the generate command: at the steps of its disk, and at random moments.

Then the same command finishes the folder, which is compared with that of an uninterrupted run, byte
by byte.
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
class Generation:
    """A generate command, with the files and the disk's steps of an uninterrupted run."""

    run: Path
    uninterrupted: dict[str, bytes]
    steps: tuple[Step, ...]

    def words(self, out: Path) -> list[str]:
        return flags(self.run, out)

    def differing(self, out: Path) -> list[str]:
        found = everything(out)
        names = found.keys() | self.uninterrupted.keys()
        return sorted(name for name in names if found.get(name) != self.uninterrupted.get(name))

    def killed_at(self, out: Path, step: Step) -> list[str]:
        """Kill the command at a step and run it again; the files that differ."""
        shutil.rmtree(out, ignore_errors=True)
        first = start(generate.main, self.words(out), disk=KillingDisk(out, step, "after"))
        assert exit_code(first) == -signal.SIGKILL, step
        assert exit_code(start(generate.main, self.words(out), disk=WatchedDisk(out))) == 0, step
        return self.differing(out)


def flags(run: Path, out: Path) -> list[str]:
    saves = ["--save", "images,codes,tars", "--samples-per-task", 4]
    return words(run, out, "--count", 7, "--batch-size", 2, *saves)


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    folder = tmp_path_factory.mktemp("generation")
    run, out = make_run(folder / "run", StartOfSequence()), folder / "out"
    disk = ListingDisk(out, folder / "steps.txt")
    assert exit_code(start(generate.main, flags(run, out), disk=disk)) == 0
    return Generation(run, everything(out), tuple(read_steps(folder / "steps.txt")))


DECISIVE = (
    "replace staged file",
    "replace tars/00000.tar",
    "link codes.zarr/_index/2x3/0.parquet",
    "link index/00000.parquet",
)


@pytest.mark.parametrize("name", DECISIVE)
def test_generate_killed_at_a_decisive_step_resumes_to_the_same_bytes(
    name: str, generation: Generation, tmp_path: Path
) -> None:
    assert not generation.killed_at(tmp_path / "out", Step(name))


@pytest.mark.slow
def test_generate_killed_at_any_step_resumes_to_the_same_bytes(
    generation: Generation, tmp_path: Path
) -> None:
    steps = [step for step in generation.steps if not step.name.startswith("fsync")]
    assert len(steps) > 50
    for step in steps:
        assert not generation.killed_at(tmp_path / "out", step), step


def kill_at_random(generation: Generation, out: Path, kills: int, draw: random.Random) -> list[str]:
    """Kill the command at random moments, then run it to its end; the files that differ."""
    began = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    assert exit_code(start(generate.main, generation.words(out))) == 0
    span = time.monotonic() - began
    shutil.rmtree(out)
    while kills:
        process = start(generate.main, generation.words(out))
        process.join(draw.uniform(0, span))
        process.kill()
        if exit_code(process) == 0:
            shutil.rmtree(out)
        else:
            kills -= 1
    assert exit_code(start(generate.main, generation.words(out))) == 0
    return generation.differing(out)


def test_generate_killed_at_random_moments_resumes_to_the_same_bytes(
    generation: Generation, tmp_path: Path
) -> None:
    assert not kill_at_random(generation, tmp_path / "out", kills=2, draw=random.Random(0))


@pytest.mark.slow
def test_generate_killed_at_many_random_moments_resumes_to_the_same_bytes(
    generation: Generation, tmp_path: Path
) -> None:
    draw = random.Random(1)
    for number in range(20):
        kills = draw.randint(1, 4)
        assert not kill_at_random(generation, tmp_path / "out", kills, draw), number


def test_two_drivers_at_once_make_one_folder(generation: Generation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [start(generate.main, generation.words(out)) for _ in range(3)]
    codes = sorted(map(exit_code, processes))
    assert codes[0] == 0
    assert set(codes) <= {0, 2}  # a later one found all done, or was refused
    assert not generation.differing(out)
