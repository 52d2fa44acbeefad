"""SIGKILL at random moments, again and again, of the driver, of a worker or of a whole raylet.

    python -m tests.crashes.kill_rounds --kind driver --rounds 1000 --seed 1

A round is one kill. Every store is finished afterwards and compared, byte by byte, with that of an
uninterrupted run. Prints a table of the states in which stores were killed and of the results; the
exit code is 1 when a store differs.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import torch
import tyro
from PIL import Image

from pipelines.store.commit import committed_tasks
from tests.conftest import photograph
from tests.crashes.encode_processes import exit_code, start_encode
from tests.crashes.ray_victims import OwnCluster
from tests.crashes.scenarios import Scenario, run_uninterrupted
from tokenizer import build_tokenizer, save_tokenizer

KILLS_A_RUN = 2  # three deaths of one task would be blamed on it


@dataclass(frozen=True, kw_only=True)
class RoundFlags:
    """Kill something at random moments and compare the resulting stores."""

    kind: Literal["driver", "worker", "raylet"] = "driver"
    """What is killed."""
    rounds: int = 50
    """Number of kills."""
    seed: int = 0
    """Seed of the moments; the state at each depends on the machine too."""


@dataclass
class Outcomes:
    """The states in which stores were killed, and how they compare afterwards."""

    met: Counter[str] = field(default_factory=Counter)
    stores: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        return self.met.total() - self.met["nothing: the run had ended"]

    @property
    def good(self) -> bool:
        return set(self.stores) <= {"identical"}

    def table(self) -> str:
        parts = (("killed with", self.met), ("stores", self.stores))
        lines = [f"{n:6}  {title} {what}" for title, c in parts for what, n in sorted(c.items())]
        return "\n".join([f"{self.kills:6}  kills", *lines])


def make_scenario(folder: Path, images: int, rows_per_task: int) -> Scenario:
    """A folder of small images, one of them broken, and the store of an uninterrupted run."""
    (folder / "images").mkdir()
    for seed in range(images - 1):
        Image.fromarray(photograph(seed, 24, 32)).save(folder / f"images/{seed:03}.png")
    (folder / "images/broken.jpg").write_bytes(b"no image")
    save_tokenizer(folder / "tokenizer", build_tokenizer("tiny", seed=0))
    scenario = Scenario(
        folder / "images", folder / "tokenizer", changed={"rows_per_task": rows_per_task}
    )
    return run_uninterrupted(scenario, folder / "uninterrupted.zarr")


def state_of(store: Path, uninterrupted: Path) -> str:
    """How far a store is."""
    if not (store / "_plan/0.parquet").exists():
        return "no plan yet"
    done, all_ = len(committed_tasks(store)), len(committed_tasks(uninterrupted))
    if done == all_:
        return "every task committed"
    return "some tasks committed" if done else "a plan and no task"


def note_state(outcome: Outcomes, scenario: Scenario, store: Path) -> None:
    outcome.met[state_of(store, scenario.finished)] += 1


def wait_for_plan(store: Path, driver: BaseProcess) -> None:
    while not (store / "_plan/0.parquet").exists() and driver.is_alive():
        time.sleep(0.001)


def compare(scenario: Scenario, store: Path, code: int) -> str:
    if code:
        return f"exit code {code}"
    names = scenario.differing(store)
    return f"DIFFERENT in {names}" if names else "identical"


def kill_drivers(
    scenario: Scenario, store: Path, draw: random.Random
) -> Generator[Outcomes, None, None]:
    """The outcome of one kill after another, one to three of them to a store."""
    started = time.monotonic()
    scenario.run(scenario.prepare(store))
    span = time.monotonic() - started
    while True:
        scenario.prepare(store)
        for _ in range(draw.randint(1, 3)):
            outcome = Outcomes()
            driver = start_encode(scenario.words(store))
            delay = draw.uniform(0, span)
            if draw.random() < 0.8:  # most of the time passes before there is a plan
                wait_for_plan(store, driver)
                delay /= 3
            driver.join(delay)
            if driver.is_alive():
                driver.kill()
                note_state(outcome, scenario, store)
            else:
                outcome.met["nothing: the run had ended"] += 1
            exit_code(driver)
            yield outcome
        outcome = Outcomes()
        started = time.monotonic()
        outcome.stores[
            compare(scenario, store, exit_code(start_encode(scenario.words(store))))
        ] += 1
        span = 0.8 * span + 0.2 * (time.monotonic() - started)  # also of runs that resume
        yield outcome


def kill_on_ray(
    scenario: Scenario, store: Path, draw: random.Random, kind: str
) -> Generator[Outcomes, None, None]:
    """The outcome of one encode after another by two actors, while kills happen at random."""
    cluster = OwnCluster()
    kill = cluster.kill_worker if kind == "worker" else cluster.kill_raylet
    try:
        while True:
            outcome = Outcomes()
            words = scenario.words(scenario.prepare(store), workers=2, address=cluster.address)
            driver = start_encode(words)
            for _ in range(KILLS_A_RUN if kind == "worker" else 1):
                committed = draw.random() < 0.8  # else while actors start
                if wait_for_actors(cluster, driver, committed and store, draw.uniform(0, 1.5)):
                    note_state(outcome, scenario, store)
                    kill(draw)
                else:
                    outcome.met["nothing: the run had ended"] += 1
            outcome.stores[compare(scenario, store, exit_code(driver))] += 1
            yield outcome
    finally:
        cluster.end()


def wait_for_actors(
    cluster: OwnCluster, driver: BaseProcess, store: Path | Literal[False], delay: float
) -> bool:
    """Wait until there are actors, and with `store` a committed task in it, and then `delay`.

    Returns whether there is still something to kill.
    """
    while driver.is_alive() and not (cluster.actors() and (not store or committed_tasks(store))):
        time.sleep(0.05)
    driver.join(delay)
    return bool(driver.is_alive() and cluster.actors())


def kill_rounds(flags: RoundFlags, folder: Path, report: Callable[[str], None]) -> Outcomes:
    """Kill `rounds` times and finish the last store."""
    torch.set_num_threads(1)
    draw, total = random.Random(flags.seed), Outcomes()
    store = folder / "codes.zarr"
    if flags.kind == "driver":
        outcomes = kill_drivers(make_scenario(folder, images=24, rows_per_task=2), store, draw)
    else:
        scenario = make_scenario(folder, images=480, rows_per_task=4)
        outcomes = kill_on_ray(scenario, store, draw, flags.kind)
    last_report = time.monotonic()
    for outcome in outcomes:
        total.met += outcome.met
        total.stores += outcome.stores
        if total.kills >= flags.rounds and outcome.stores:
            break
        if time.monotonic() - last_report > 60:
            last_report = time.monotonic()
            report(f"{total.kills} kills, stores: {dict(total.stores)}")
    outcomes.close()
    return total


def main(argv: list[str] | None = None) -> int:
    flags = tyro.cli(RoundFlags, args=argv, prog="python -m tests.crashes.kill_rounds")
    out = sys.stdout

    def report(line: str) -> None:
        out.write(line + "\n")
        out.flush()

    with tempfile.TemporaryDirectory(prefix="kill-rounds-") as folder:
        silence = StringIO()
        with redirect_stdout(silence), redirect_stderr(silence), suppress(KeyboardInterrupt):
            outcomes = kill_rounds(flags, Path(folder), report)
    report(f"--kind {flags.kind} --rounds {flags.rounds} --seed {flags.seed}\n{outcomes.table()}")
    return 0 if outcomes.good else 1


if __name__ == "__main__":
    sys.exit(main())
