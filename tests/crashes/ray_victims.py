"""A Ray cluster on this machine whose processes are killed."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

QUIET: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 128 << 20}
# A dead node is noticed within seconds, not half a minute.
SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


def title(pid: int) -> str:
    """A process's command line; "" when it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def descendants(ancestor: int) -> list[int]:
    """Children of a process, their children and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return sorted(found)


class OwnCluster:
    """A head without CPUs and a second node with two, on which all actors run."""

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "_system_config": SOON, **QUIET},
        )
        self.address = self._cluster.address
        self._second = self._add_node()

    def _add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=128 << 20)

    @property
    def _raylet(self) -> int:
        return self._second.all_processes["raylet"][0].process.pid

    def actors(self) -> list[int]:
        """The process ids of all actors."""
        return [pid for pid in descendants(self._raylet) if title(pid).startswith("ray::_Actor")]

    def kill_worker(self, draw: random.Random) -> None:
        """SIGKILL to one actor's process."""
        with suppress(ProcessLookupError, IndexError):
            os.kill(draw.choice(self.actors()), signal.SIGKILL)

    def kill_raylet(self, _: random.Random) -> None:
        """SIGKILL to the second node's raylet, which ends its actors; then add another node."""
        os.kill(self._raylet, signal.SIGKILL)
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._add_node()

    def end(self) -> None:
        self._cluster.shutdown()
