"""WorkerDevices: what a command's workers compute on, which need not be what its driver has."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from ops.config import ConfigError
from ops.runtime import named_device, resolve_device
from pipelines.console import show
from pipelines.jobs.cluster import cluster_address, ray_running

T = TypeVar("T")

PART_OF_GPU = 0.01  # what looking at a GPU takes of it


class WorkerDevices(contextlib.ExitStack):
    """The devices of a command's workers.

    With `workers` 0 they are those of this process. Otherwise Ray's nodes have them, and the driver
    needs none: Ray is connected to when it is first asked, and until the context ends. A local Ray
    has at least `cpus` CPUs.
    """

    def __init__(self, workers: int = 0, address: str | None = None, cpus: float = 1) -> None:
        super().__init__()
        self.workers, self._address, self._cpus = workers, address, cpus
        self._gpus: float | None = None
        self._auto: str | None = None  # once it has been found and printed

    def connect(self) -> None:
        """Connect to Ray, where the workers run there."""
        if self.workers and self._gpus is None:
            self.enter_context(ray_running(cluster_address(self._address), cpus=self._cpus))
            self._gpus = cluster_gpus()

    def resolve(self, name: str, gpus_per_worker: float | str = "auto") -> str:
        """The device `name` of every worker: "cpu" or "cuda", without Ray also "cuda:1".

        "auto" is a GPU where there is one; what was found in a cluster is printed. Raises
        ConfigError for an unknown name and for a GPU that the workers cannot have.
        """
        if not self.workers:
            return str(resolve_device(name))
        if name == "cpu" or (name != "auto" and self.type_of(name) == "cpu"):
            return "cpu"
        self.connect()
        if name == "auto":
            if self._auto is None:
                self._auto = "cuda" if self._gpus else "cpu"
                show(f"device: {self._auto}, since {self._found()}")
            if self._auto == "cpu":
                return "cpu"
        elif not self._gpus:
            raise ConfigError(
                f"There is no GPU for --device {name}: {self._found()}. Use --device cpu, or a "
                "cluster with GPUs."
            )
        if gpus_per_worker == 0:
            raise ConfigError(
                "With --gpus-per-worker 0 no worker may use a GPU. Give a fraction to share one, "
                "or --device cpu."
            )
        return "cuda"

    def type_of(self, name: str) -> str:
        """The type of a device's name other than auto, "cpu" or "cuda"; ConfigError for others."""
        device = named_device(name)
        if self.workers and device.index is not None:
            raise ConfigError(
                f"--device {name} is one device of one machine, but Ray gives every worker devices "
                f"of its own. Use --device {device.type}."
            )
        return device.type

    def require(self, gpus: int) -> None:
        """Raise ConfigError unless the cluster has that many GPUs."""
        assert self._gpus is not None, "not connected"
        if self._gpus < gpus:
            raise ConfigError(
                f"{gpus} workers train together, each on a GPU of its own, but {self._found()}. "
                "Give --workers that number, or --device cpu."
            )

    def check_usable(self) -> None:
        """Raise ConfigError, naming the node, where torch cannot use the GPUs of a node."""
        for found in _on_gpu_nodes(_problem):
            if found:
                raise ConfigError(found)

    def gpu_memory(self, name: str) -> int | None:
        """Bytes of memory of the workers' GPU `name`, the smallest of a cluster's.

        None where it is not known: in a cluster that has yet to start its nodes.
        """
        if not self.workers:
            return int(torch.cuda.get_device_properties(name).total_memory)
        self.connect()
        return min((found for found in _on_gpu_nodes(_memory) if found), default=None)

    def _found(self) -> str:
        import ray

        if self._gpus == float(sys.maxsize):
            return "the cluster may start nodes with GPUs"
        resources = ray.cluster_resources()
        models = sorted(
            name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")
        )
        kinds = f" ({', '.join(models)})" if models else ""
        nodes = sum(node["Alive"] for node in ray.nodes())
        counts = f"{_count(nodes, 'node')} with {_count(resources.get('CPU', 0), 'CPU')}"
        return f"the cluster has {counts} and {_count(self._gpus or 0, 'GPU')}{kinds}"


def _on_gpu_nodes(question: Callable[[], T]) -> Iterator[T]:
    """The answers of a GPU of each node that has one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    task = ray.remote(num_cpus=0, num_gpus=PART_OF_GPU)(question)
    asked = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    yield from map(ray.get, asked)


def _memory() -> int:
    """Bytes of memory of the GPU that this process was given, 0 where torch cannot use it."""
    usable = torch.cuda.is_available()
    return torch.cuda.get_device_properties("cuda").total_memory if usable else 0


def _problem() -> str:
    """Why torch cannot use the GPU that this process was given, "" where it can."""
    try:
        resolve_device("cuda")
    except ConfigError as error:
        return str(error)
    return ""


def cluster_gpus() -> float:
    """GPUs of the cluster that is connected to, with those of nodes that it may still start."""
    import ray

    now: float = ray.cluster_resources().get("GPU", 0)
    # Private, but nothing else tells what an autoscaler may start; Ray Data asks the same way.
    state: Any = ray._private.state.state
    limits = state.get_max_resources_from_cluster_config() or {}
    return max(now, float(limits.get("GPU", 0)))


def gpus_of_worker(gpus_per_worker: float | str, device: str) -> float:
    """What --gpus-per-worker asks for: "auto" is a whole GPU where the workers use one."""
    on_gpu = torch.device(device).type == "cuda"
    return float(on_gpu) if isinstance(gpus_per_worker, str) else gpus_per_worker


def own_device(name: str, on_ray: bool) -> torch.device:
    """The device that this process, a worker on Ray or not, computes on.

    Of a Ray worker "auto" is the GPU that it was given, and a CPU only where it was given none.
    Raises ConfigError where torch cannot use that GPU: it must not be slow in silence.
    """
    if on_ray and name == "auto":
        import ray

        name = "cuda" if ray.get_gpu_ids() else "cpu"
    return resolve_device(name)


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'s' * (number != 1)}"
