"""The device of a command's workers: the cluster's, whatever the driver's machine has."""

from __future__ import annotations

import pytest
import torch

from ops.config import ConfigError
from pipelines.jobs import WorkerDevices, gpus_of_worker
from tests.clusters import cluster_of

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def driver_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the driver asks torch for a GPU of its own."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("the driver asked for its own GPU")

    for name in ("is_available", "device_count", "init", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, refuse)


@pytest.mark.usefixtures("driver_without_a_card")
def test_auto_is_a_gpu_where_the_cluster_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    with cluster_of(gpus=8), WorkerDevices(4) as devices:
        assert [devices.resolve("auto"), devices.resolve("auto")] == ["cuda", "cuda"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line == ("device: cuda, since the cluster has 2 nodes with 16 CPUs and 8 GPUs (H100)")
    with cluster_of(gpus=0), WorkerDevices(4) as devices:
        assert devices.resolve("auto") == "cpu"
    assert "device: cpu, since the cluster has 2 nodes" in capsys.readouterr().out
    with cluster_of(gpus=0, may_start=4), WorkerDevices(4) as devices:
        assert devices.resolve("auto") == "cuda"  # an autoscaler starts the nodes when asked


@pytest.mark.usefixtures("driver_without_a_card")
def test_a_gpu_that_was_asked_for_must_be_in_the_cluster() -> None:
    with cluster_of(gpus=1), WorkerDevices(4) as devices:
        assert devices.resolve("cuda", gpus_per_worker=0.25) == "cuda"
        with pytest.raises(ConfigError, match="no worker may use a GPU"):
            devices.resolve("cuda", gpus_per_worker=0)
        with pytest.raises(ConfigError, match=r"4 workers train together.* and 1 GPU \(H100\)"):
            devices.require(4)
    with cluster_of(gpus=0), WorkerDevices(4) as devices:
        with pytest.raises(ConfigError, match="no GPU for --device cuda: the cluster has 2 nodes"):
            devices.resolve("cuda")
        assert devices.resolve("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:1", "cuda:0"])
def test_one_device_of_one_machine_is_refused_for_workers(name: str) -> None:
    with cluster_of(gpus=8), WorkerDevices(4) as devices:
        with pytest.raises(ConfigError, match=f"--device {name} is one device.*Use --device cuda"):
            devices.resolve(name)
        with pytest.raises(ConfigError, match="No device 'abacus'"):
            devices.resolve("abacus")


def test_without_workers_the_device_is_this_process_s() -> None:
    devices = WorkerDevices()
    assert devices.resolve("cpu") == "cpu"
    assert devices.resolve("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="not on this machine"):
        devices.resolve("cuda:99")


def test_a_worker_gets_a_gpu_or_the_part_that_was_asked_for() -> None:
    assert [gpus_of_worker("auto", device) for device in ("cpu", "cuda")] == [0, 1]
    assert gpus_of_worker(0.25, "cuda") == 0.25
