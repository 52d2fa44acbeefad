"""The device of a command's workers: the cluster's, whatever the driver's machine has."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.config import ConfigError
from pipelines.encoding.worker import EncodeWorker
from pipelines.generation.worker import GenerationWorker
from pipelines.jobs import WorkerDevices, gpus_of_worker, own_device
from pipelines.planning import read_plan
from pipelines.store import track_path
from pipelines.training import launch
from pipelines.training.run_folder import RunFolder
from tests.clusters import cluster_of
from tests.encode_run import EncodeRun
from tests.generate_run import generate, request_of
from tests.generate_run import words as generate_words

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


# --- the commands


@pytest.fixture
def run_tasks_asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What encode and generate ask of run_tasks, which runs nothing."""
    asked: dict[str, Any] = {}
    for stage in ("encoding", "generation"):
        monkeypatch.setattr(
            f"pipelines.{stage}.job.run_tasks", lambda *tasks, **options: asked.update(options)
        )
    monkeypatch.setattr("pipelines.tracks.encode_store.check_as_planned", lambda *given: None)
    return asked


@pytest.mark.usefixtures("driver_without_a_card")
def test_encode_freezes_the_cluster_s_gpu_and_asks_for_one_a_worker(
    run: EncodeRun, photographs: Path, run_tasks_asked: dict[str, Any]
) -> None:
    with cluster_of(gpus=2):
        assert run(photographs, workers=2, track=("low_res=2",)) == 0, run.errors
    for root in (run.out, track_path(run.out, "low_res")):
        plan = read_plan(root)
        assert plan is not None
        track = plan.settings.track
        assert (track["device"], track["precision"]) == ("cuda", "tf32")
        assert (track["convolution"], track["torch"]) == ("direct", torch.__version__)
    assert run_tasks_asked["gpus_per_worker"] == 1
    with cluster_of(gpus=2):
        assert run(photographs, workers=2, gpus_per_worker=0.5) == 0
    assert run_tasks_asked["gpus_per_worker"] == 0.5
    with cluster_of(gpus=0):
        assert run(photographs, workers=2) == 2
    assert "no GPU for --device cuda: the cluster has 2 nodes with 16 CPUs" in run.errors
    assert "It was begun there. --accept device goes on" in run.errors


@pytest.mark.usefixtures("run_tasks_asked")
def test_nothing_is_written_for_a_gpu_that_a_cluster_lacks(
    run: EncodeRun, photographs: Path
) -> None:
    with cluster_of(gpus=0):
        assert run(photographs, workers=2, device="cuda") == 2
    assert "no GPU for --device cuda: the cluster has 2 nodes" in run.errors
    assert not run.out.exists()


@pytest.mark.usefixtures("driver_without_a_card")
def test_generate_records_the_cluster_s_gpu_and_asks_for_one_a_worker(
    prior_run: Path, tmp_path: Path, run_tasks_asked: dict[str, Any]
) -> None:
    with cluster_of(gpus=2):
        assert generate(prior_run, tmp_path, "--workers", 2, "--save", "codes") == 0
    record = json.loads((tmp_path / "generation.json").read_text())
    assert (record["device"], record["precision"]) == ("cuda", "bfloat16")
    plan = read_plan(tmp_path / "codes.zarr")
    assert plan is not None
    assert plan.settings.track["generated"]["precision"] == "bfloat16"
    assert run_tasks_asked["gpus_per_worker"] == 1


@pytest.mark.usefixtures("driver_without_a_card")
def test_training_needs_a_gpu_for_each_worker_or_is_asked_for_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    monkeypatch.setattr(launch, "check_on_every_node", lambda *paths: None)
    monkeypatch.setattr(launch, "_launch", lambda *given: launched.append(given[-1]))

    def start(**given: Any) -> None:
        run, config = RunFolder(tmp_path), launch.WorkerConfig(**given)
        launch.run_attempts(run, 2, lambda *_: 0, config, {})

    with cluster_of(gpus=2):
        start(workers=2)
        start(workers=2, device="cpu")
        with pytest.raises(ConfigError, match="3 workers train together"):
            start(workers=3)
    with cluster_of(gpus=0):
        start(workers=2)
    assert launched == [True, False, False]


@NO_GPU
def test_a_worker_that_cannot_use_the_gpu_it_was_given_says_why(
    run: EncodeRun, photographs: Path, prior_run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])
    with pytest.raises(ConfigError, match=r"'cuda' is not on this machine.*: .+ Use --device cpu"):
        own_device("auto", on_ray=True)
    assert own_device("cpu", on_ray=True).type == "cpu"
    assert run(photographs, image_size=32, device="cpu") == 0
    with pytest.raises(ConfigError, match="'cuda' is not on this machine"):
        EncodeWorker(run.out, environment={"device": "cuda"})
    request = replace(request_of(prior_run, tmp_path / "samples"), device="cuda")
    with pytest.raises(ConfigError, match="'cuda' is not on this machine"):
        GenerationWorker(request)


COMMANDS = """
import json, ray, sys
from pipelines import encode, generate, train_prior
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False,
         object_store_memory=100 << 20, log_to_driver=False)
for name, words in json.loads(sys.argv[1]).items():
    print(name, globals()[name].main(words), file=sys.stderr, flush=True)
"""


@NO_GPU
@pytest.mark.slow
@pytest.mark.ray
def test_actors_on_a_gpu_that_torch_cannot_use_end_the_command(
    run: EncodeRun, photographs: Path, prior_run: Path, rule_store: Path, tmp_path: Path
) -> None:
    samples, trained = tmp_path / "samples", tmp_path / "run"
    training = ["tiny", "--codes", str(rule_store), "--out", str(trained), "--window", "4"]
    words = {
        "encode": run.flags(photographs, workers=1),
        "generate": generate_words(prior_run, samples, "--workers", 1),
        "train_prior": [*training, "--steps", "2", "--workers", "1"],
    }
    command = [sys.executable, "-c", COMMANDS, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    for name in words:
        assert f"{name} 2" in done.stderr, done.stderr
    assert done.stdout.count("device: cuda, since the cluster has 1 node with 2 CPUs") == 3
    assert done.stderr.count("error: Device 'cuda' is not on this machine") == 3
    assert "Traceback" not in done.stderr
