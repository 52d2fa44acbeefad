"""A stand-in for the resources of a Ray cluster, where a test needs no cluster but its answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipelines.jobs import devices


@contextlib.contextmanager
def cluster_of(gpus: float, may_start: float = 0) -> Iterator[None]:
    """Ray, as WorkerDevices asks it, has two nodes, 16 CPUs and that many H100s.

    An autoscaler may start `may_start` GPUs.
    """
    resources = {"CPU": 16.0, "GPU": float(gpus), "accelerator_type:H100": 1.0}
    if not gpus:
        resources = {"CPU": 16.0}
    nodes = [{"Alive": alive, "Resources": {}} for alive in (True, True, False)]
    limits = {"GPU": may_start} if may_start else None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(devices, "ray_running", lambda *a, **k: contextlib.nullcontext())
        patched.setattr("ray.cluster_resources", lambda: resources)
        patched.setattr("ray.nodes", lambda: nodes)
        state = SimpleNamespace(get_max_resources_from_cluster_config=lambda: limits)
        patched.setattr("ray._private.state.state", state)
        yield
