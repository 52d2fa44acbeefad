"""Training under Ray: the same losses, killed workers, errors that a retry would not solve."""

import json
import os
import signal
import sys
import time

import pytest
import torch

from ops.checkpoint import newest_step, step_folder, step_folders, step_of
from ops.config import UserError
from pipelines import train_prior, train_tokenizer
from pipelines.jobs.cluster import (
    ClusterPathError,
    check_absolute,
    check_on_every_node,
    cluster_address,
)
from pipelines.training.launch import WorkerConfig, run_attempts
from pipelines.training.loop import FINITE, Evaluation, LoopSettings, Source, TrainTask, train
from pipelines.training.run_folder import RunFolder

# Ray's own modules use what Ray has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
TWO = WorkerConfig(workers=2, device="cpu", restarts=2)
FLAGS = [
    "--steps", "4", "--save-every", "2", "--log-every", "1", "--sample-every", "4", "--threads",
    "1", "--batch-size", "4", "--device", "cpu",
]  # fmt: skip


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


class Adder(TrainTask[float]):
    """Adds up the batches of all processes; `before_step` may fail."""

    def __init__(self, ranks, before_step):
        self.ranks, self.before_step = ranks, before_step
        self.total = torch.zeros(())

    def train_step(self, batch, step):
        self.before_step(self.ranks.rank, step)
        self.total += self.ranks.mean(torch.tensor(batch))
        return {"loss": self.total.clone(), FINITE: torch.tensor(True)}

    def snapshot(self):
        total = self.total.clone()

        def write(folder, ranks):
            if ranks.is_first:
                (folder / "config.json").write_text("{}")
                (folder / "model.safetensors").write_bytes(b"")
                torch.save({"total": total}, folder / "train_state.pt")

        return write

    def load(self, folder):
        self.total = torch.load(folder / "train_state.pt", weights_only=True)["total"]

    def evaluate(self, step):
        return Evaluation({}, {})


def wait_for(run, step):
    """Wait until the checkpoint after `step` steps, which a thread writes, is complete."""
    while not step_folder(run, step).is_dir():
        time.sleep(0.01)


@pytest.fixture
def run_attempt(ray_local, tmp_path):
    """run_attempt(worker_config, before_step): a run of 12 steps, saved every 3, under Ray."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    settings = LoopSettings(steps=12, save_every=3, log_every=1, sample_every=100, keep=10)

    def start(worker_config, before_step):
        run = tmp_path / "run"

        def attempt(ranks, on_step):
            with open(tmp_path / f"started-{ranks.rank}", "a") as file:
                newest = newest_step(run)
                file.write(f"{step_of(newest) if newest else 0}\n")
            source = Source(
                lambda start, stop: (float(10 * s + ranks.rank) for s in range(start, stop))
            )
            return train(
                Adder(ranks, before_step), source, RunFolder(run), settings, ranks, on_step
            )

        return run_attempts(RunFolder(run), settings.steps, attempt, worker_config, {})

    yield start
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.ray
def test_a_killed_worker_loses_only_the_steps_since_the_checkpoint(run_attempt, tmp_path):
    mark = tmp_path / "killed"

    def kill_once(rank, step):
        if (rank, step) == (1, 7) and not mark.exists():
            wait_for(tmp_path / "run", 6)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_attempt(TWO, kill_once) == 12
    run = tmp_path / "run"
    assert [step_of(folder) for folder in step_folders(run)] == [3, 6, 9, 12]
    # the mean over ranks at step s is 10 s + 0.5, and each step counted once
    assert losses(run) == [sum(10 * s + 0.5 for s in range(done)) for done in range(1, 13)]
    for rank in range(2):  # both were restarted, from the newest checkpoint
        assert (tmp_path / f"started-{rank}").read_text().split() == ["0", "6"]
    assert not (run / ".ray_train").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_user_error_in_one_worker_ends_the_run_with_its_message(run_attempt, tmp_path):
    def mistake(rank, step):
        if (rank, step) == (1, 4):
            wait_for(tmp_path / "run", 3)
            raise UserError("The fifth image is unreadable.")

    with pytest.raises(UserError, match="The fifth image is unreadable"):
        run_attempt(TWO, mistake)
    assert newest_step(tmp_path / "run").name == "step-00000003"
    assert (tmp_path / "started-1").read_text().split() == ["0"]


@pytest.mark.slow
@pytest.mark.ray
def test_workers_that_die_again_and_again_end_the_run(run_attempt, tmp_path):
    def die(rank, step):
        if (rank, step) == (0, 4):
            wait_for(tmp_path / "run", 3)
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        UserError, match=r"were started 2 times and died each time; 3 steps are safe"
    ):
        run_attempt(WorkerConfig(workers=1, device="cpu", restarts=1), die)


@pytest.mark.ray
def test_two_workers_train_a_prior_to_the_losses_of_one_process(ray_local, rule_store, tmp_path):
    def train_in(name, *more):
        flags = ["tiny", "--codes", str(rule_store), "--window", "4", *FLAGS, *more]
        assert train_prior.main([*flags, "--out", str(tmp_path / name)]) == 0
        return losses(tmp_path / name)

    alone = train_in("alone")
    assert train_in("two", "--workers", "2") == pytest.approx(alone, rel=1e-4)
    assert len(alone) == 4
    # and a run may be resumed with another number of workers
    longer = ["--steps", "6"]
    assert train_in("two", *longer) == pytest.approx(train_in("alone", *longer), rel=1e-4)


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_train_a_tokenizer_to_the_losses_of_one_process(
    ray_local, photographs, tmp_path
):
    def train_in(name, *more):
        flags = ["tiny", "--data", str(photographs), "--crop-size", "32", *FLAGS, *more]
        assert train_tokenizer.main([*flags, "--out", str(tmp_path / name)]) == 0
        return losses(tmp_path / name)

    alone = train_in("alone", "--num-workers", "0")
    two = train_in("two", "--workers", "2", "--num-workers", "1")
    assert two == pytest.approx(alone, rel=1e-4)


@pytest.mark.ray
def test_paths_missing_on_a_node_are_named_with_the_node(ray_local, tmp_path):
    import ray

    node = ray.nodes()[0]["NodeManagerHostname"]
    (tmp_path / "here").mkdir()
    check_on_every_node({"--codes": tmp_path / "here"}, {"--out": tmp_path / "new" / "run"})
    with pytest.raises(ClusterPathError) as raised:
        check_on_every_node({"--codes": tmp_path / "gone"}, {"--out": tmp_path / "file" / "run"})
    assert f"on {node}" in str(raised.value)
    assert f"--codes {tmp_path / 'gone'} does not exist" in str(raised.value)
    assert "--out" not in str(raised.value)
    (tmp_path / "file").touch()
    with pytest.raises(ClusterPathError, match=r"--out .* cannot be written \(Not a directory\)"):
        check_on_every_node({}, {"--out": tmp_path / "file" / "run"})


def test_a_relative_path_is_refused_in_a_job_and_fine_elsewhere(monkeypatch, tmp_path):
    paths = {"--out": tmp_path, "--codes": tmp_path.relative_to("/")}
    check_absolute(paths)
    assert cluster_address(None) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ClusterPathError, match=r"--codes .* is relative.*copy of the working"):
        check_absolute(paths)
    assert cluster_address(None) == "auto"
    assert cluster_address("10.0.0.1:6379") == "10.0.0.1:6379"
