"""A cluster that grows, is drained and loses nodes while a job runs on it."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs import actors
from pipelines.jobs.cluster import ClusterPathError
from pipelines.jobs.run import run_tasks

pytestmark = [pytest.mark.slow, pytest.mark.ray]
SECONDS = 0.25  # that a task takes


class Sleeping:
    """A worker that records the node of each task it begins, and whose rows `hang` never end."""

    def __init__(self, folder: Path, hang: frozenset[int] = frozenset()) -> None:
        import ray

        self.folder, self.hang = folder, hang
        self.node = ray.get_runtime_context().get_node_id()

    def run(self, task: int) -> str:
        with open(self.folder / str(task), "a") as file:
            file.write("x")
        if task in self.hang and not (self.folder / f"given up {task}").exists():
            threading.Event().wait()
        time.sleep(SECONDS)
        return str(self.node)


class Nodes:
    """A head without CPUs, and nodes of one CPU that come and go."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        from tests.crashes.ray_victims import QUIET, SOON

        self._quiet = {"object_store_memory": QUIET["object_store_memory"]}
        head = {"num_cpus": 0, "_system_config": SOON, **QUIET}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, **self._quiet)

    def kill(self, node: Any) -> None:
        """SIGKILL to a raylet, which ends its actors."""
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def pre_empt(self, node: Any, seconds: float) -> None:
        """Say that the node will end in so many seconds, as a cloud does of a spot instance."""
        import ray
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        accepted, _ = ray._private.worker.global_worker.gcs_client.drain_node(
            node.node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the cloud takes it back",
            int(1000 * (time.time() + seconds)),
        )
        assert accepted

    def end(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray cannot import this file
    found = Nodes()
    yield found
    found.end()


class Changes:
    """Collects results, and changes the nodes: two join, the first is pre-empted, one is killed."""

    def __init__(self, nodes: Nodes) -> None:
        self.first, self.others = nodes.add(), list[Any]()
        self.found: list[tuple[float, int, str]] = []  # (time, task, node)
        self.at: list[float] = []  # when the changes began
        self._changes = [
            lambda: self.others.extend([nodes.add(), nodes.add()]),
            lambda: nodes.pre_empt(self.first, 3.0),
            lambda: nodes.kill(self.others[0]),
        ]

    def on_result(self, task: int, node: str) -> None:
        self.found.append((time.monotonic(), task, node))
        of_node = Counter(node for _, _, node in self.found)
        enough = (
            len(self.found) >= 8,
            min(of_node[other.node_id] for other in self.others) >= 8 if self.others else False,
            len(self.at) == 2 and len(self.results_since(self.at[1] + 3)) >= 8,
        )
        if len(self.at) < 3 and enough[len(self.at)]:
            self.at.append(time.monotonic())
            self._changes[len(self.at) - 1]()

    def results_since(self, begin: float, end: float = float("inf")) -> list[str]:
        """The nodes of the results in that time."""
        return [node for when, _, node in self.found if begin < when < end]

    def rates(self) -> list[float]:
        """Tasks a second with one, three and again one nodes."""
        begun = [self.found[0][0], 0.0, self.at[2] + 3]
        begun[1] = max(
            min(when for when, _, node in self.found if node == other.node_id)
            for other in self.others
        )
        ended = [self.at[0], self.at[1], self.found[-1][0]]
        phases = zip(begun, ended, strict=True)
        return [len(self.results_since(*phase)) / (phase[1] - phase[0]) for phase in phases]


def test_job_follows_nodes_that_join_and_end(
    nodes: Nodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr(actors, "DRAINING_SECONDS", 0.5)
    monkeypatch.setattr(actors, "WAITING_SECONDS", 1.0)
    changes = Changes(nodes)
    run_tasks(
        range(200),
        lambda: Sleeping(tmp_path),
        on_result=changes.on_result,
        workers=3,
        attempts=1,  # so that a death ends the run
        on_progress=lambda _: None,
    )
    assert Counter(task for _, task, _ in changes.found) == Counter(range(200))
    assert re.search(r"\d of 3 workers have started; the others", capsys.readouterr().err)
    first, (second, third) = changes.first.node_id, (node.node_id for node in changes.others)
    joined, drained, killed = changes.at
    assert set(changes.results_since(0, joined)) == {first}
    assert set(changes.results_since(joined, drained)) == {first, second, third}
    assert set(changes.results_since(drained + 3, killed)) == {second, third}
    assert set(changes.results_since(killed + 3)) == {third}
    begun = sum(len((tmp_path / str(task)).read_text()) for task in range(200))
    assert 200 <= begun <= 202  # only what the killed node ran is run again
    rates = changes.rates()
    record_property("rates", rates)
    assert rates[1] > 1.5 * rates[0]
    nodes.kill(changes.others[1])


def test_worker_that_hangs_is_killed_and_its_row_given_up(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    given_up: list[tuple[int, bool]] = []

    def give_up(task: int, stalled: bool) -> None:
        given_up.append((task, stalled))
        (tmp_path / f"given up {task}").touch()

    results: dict[int, str] = {}
    run_tasks(
        range(4),
        lambda: Sleeping(tmp_path, frozenset({2})),
        on_result=results.setdefault,
        workers=1,
        attempts=1,
        split=lambda task: (),
        give_up=give_up,
        stall_timeout=1.0,
    )
    assert results.keys() == set(range(4))
    assert given_up == [(2, True)]


def test_node_that_does_not_see_the_paths_is_refused_when_it_joins(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That it joins later is played by the check at the start, which finds no node yet.
    monkeypatch.setattr("ray.nodes", list)
    with pytest.raises(ClusterPathError, match=r"on \S+, --in .*gone does not exist"):
        run_tasks(
            range(4),
            lambda: Sleeping(tmp_path),
            on_result=print,
            workers=1,
            address="auto",
            reads={"--in": tmp_path / "gone"},
        )
