"""kill -9 at random moments, round after round: drivers, Ray workers, whole raylets.

    python -m tests.crashes.kill_rounds --kind driver|worker|raylet [--rounds N] [--seed S]

Each kill is a round. What was killed is run again until it ends by itself, and the store must then
be the undisturbed one, byte for byte. Prints a line a finished store and a table at the end; the
exit code says whether every store was right.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import photograph
from tests.crashes.encode_processes import exit_code, start_encode
from tests.crashes.scenes import Scene, run_undisturbed

IMAGES = 24
ON_RAY = {"workers": 2}
CLEAR_ENDS = (0, 2)  # done, or one line that says what was wrong


def make_scene(folder: Path, **changed: object) -> Scene:
    """A store of twelve tasks, one image of which is broken."""
    from tokenizer import build_tokenizer, save_tokenizer

    images = folder / "images"
    images.mkdir()
    for seed in range(IMAGES - 1):
        Image.fromarray(photograph(seed, 24, 32)).save(images / f"{seed:02d}.png")
    (images / "broken.jpg").write_bytes(b"no picture")
    save_tokenizer(folder / "tokenizer", build_tokenizer("tiny", seed=0))
    (folder / "undisturbed").mkdir()
    scene = Scene(images, folder / "tokenizer", changed=dict(changed))
    return run_undisturbed(scene, folder / "undisturbed" / "codes.zarr")


class Rounds:
    """Counts the kills of one session and what became of the stores."""

    def __init__(self, scene: Scene, out: Path, rounds: int, seed: int) -> None:
        self.scene, self.out, self.rounds = scene, out, rounds
        self.draw = random.Random(seed)
        self.kills = 0
        self.outcomes: Counter[str] = Counter()

    def go(self, disturb: Callable[[BaseProcess], int], **changed: object) -> bool:
        """Make stores until enough was killed; `disturb` kills things while one is being made
        and says how many. Whether every store was right."""
        while self.kills < self.rounds:
            self.scene.prepare(self.out)
            kills, ends = 0, []
            while not ends or ends[-1] != 0:
                process = start_encode(self.scene.words(self.out, **changed))
                kills += disturb(process)
                ends.append(exit_code(process))
            self.kills += kills
            self._note(kills, ends)
        print(f"{self.kills} kills, {sum(self.outcomes.values())} stores:", flush=True)
        for outcome, count in self.outcomes.most_common():
            print(f"  {count:5d}  {outcome}", flush=True)
        return set(self.outcomes) == {"byte-identical"}

    def _note(self, kills: int, ends: list[int]) -> None:
        unclear = [end for end in ends if end not in (*CLEAR_ENDS, -signal.SIGKILL)]
        names = self.scene.differing(self.out)
        outcome = f"ended with {unclear}" if unclear else "byte-identical"
        outcome = f"differs in {names}" if names else outcome
        self.outcomes[outcome] += 1
        print(f"{self.kills:5d}  {kills} kills, exit codes {ends}: {outcome}", flush=True)


def kill_driver(draw: random.Random, longest: float) -> Callable[[BaseProcess], int]:
    """Kill the command itself once, unless it ends before."""

    def disturb(process: BaseProcess) -> int:
        process.join(draw.uniform(0, longest))
        process.kill()
        process.join()
        return int(process.exitcode == -signal.SIGKILL)

    return disturb


def kill_workers(draw: random.Random) -> Callable[[BaseProcess], int]:
    """Kill one of its Ray actors now and then, until the command ends."""

    def disturb(process: BaseProcess) -> int:
        kills = 0
        while process.is_alive():
            actors = processes_named("ray::_Actor")
            if actors and kills < 6:  # more at once would only show that it gives up
                # The command needs a while to see a death: most kills shall meet work.
                process.join(draw.choice((0.0, 0.05, 0.2, 1.0)))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(actors), signal.SIGKILL)
                    kills += 1
            process.join(draw.uniform(0.1, 1.5))
        return kills

    return disturb


def kill_raylet(draw: random.Random, cluster: Any) -> Callable[[BaseProcess], int]:
    """Kill the raylet that the workers run under, then give the cluster another node."""
    node = cluster.add_node(num_cpus=2)

    def disturb(process: BaseProcess) -> int:
        nonlocal node
        deadline = time.monotonic() + 60
        while process.is_alive() and not processes_named("ray::_Actor"):
            process.join(0.05)
            assert time.monotonic() < deadline
        process.join(draw.uniform(0, 1.5))
        if not process.is_alive():
            return 0
        cluster.remove_node(node, allow_graceful=False)
        node = cluster.add_node(num_cpus=2)
        process.join(120)
        return 1

    return disturb


def processes_named(prefix: str) -> list[int]:
    """Process ids by the first word of the command line, as Ray renames its workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(prefix.encode()):
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def cluster_without_cpus() -> Iterator[Any]:
    """A head node that runs no worker itself; the nodes that tests add and kill do."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


def run_rounds(kind: str, rounds: int, seed: int, folder: Path) -> bool:
    """Whether every store was right after `rounds` kills of one kind."""
    scene = make_scene(folder)
    session = Rounds(scene, folder / "codes.zarr", rounds, seed)
    if kind == "driver":
        started = time.monotonic()
        scene.prepare(session.out)
        assert scene.run(session.out) == 0
        return session.go(kill_driver(session.draw, 1.2 * (time.monotonic() - started)))
    with cluster_without_cpus() as cluster:
        on_ray = {**ON_RAY, "address": cluster.address}
        if kind == "raylet":
            return session.go(kill_raylet(session.draw, cluster), **on_ray)
        cluster.add_node(num_cpus=2)
        return session.go(kill_workers(session.draw), **on_ray)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("driver", "worker", "raylet"), required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return int(not run_rounds(flags.kind, flags.rounds, flags.seed, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
