import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ops.checkpoint import newest_step, step_folders, step_of
from pipelines import train_tokenizer
from pipelines.training import (
    LoopSettings,
    Trainee,
    TrainingError,
    evaluating,
    pin_settings,
    train,
)

SETTINGS = LoopSettings(steps=10, save_every=4, log_every=3, sample_every=5)


class Walker(Trainee[float]):
    """The least thing that can be trained: it adds up what it is given and what torch draws."""

    def __init__(self, poison_at=None):
        self.total = torch.zeros(())
        self.seen = []
        self.poison_at = poison_at

    def train_step(self, batch, step):
        self.seen.append((step, batch))
        self.total += batch + torch.rand(())
        loss = torch.tensor(float("nan")) if step == self.poison_at else self.total.clone()
        return {"loss": loss}

    def save(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
        torch.save({"total": self.total}, folder / "train_state.pt")

    def load(self, folder):
        self.total = torch.load(folder / "train_state.pt", weights_only=True)["total"]

    def evaluate(self, step):
        return {"held_out": float(step)}, {"dots": np.zeros((4, 4, 3), np.uint8)}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_checkpoints_figures_and_pictures(tmp_path):
    walker = Walker()
    assert train(walker, float, tmp_path, SETTINGS) == 10
    assert walker.seen == [(step, float(step)) for step in range(10)]
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [8, 10]
    logged = lines(tmp_path)
    assert [line["step"] for line in logged if "loss" in line] == [3, 4, 6, 8, 9, 10]
    assert [line["step"] for line in logged if "held_out" in line] == [5, 10]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "dots-00000005.png",
        "dots-00000010.png",
    ]


def test_a_finished_run_does_nothing_the_second_time(tmp_path):
    train(Walker(), float, tmp_path, SETTINGS)
    before = lines(tmp_path)
    again = Walker()
    assert train(again, float, tmp_path, SETTINGS) == 0
    assert again.seen == []
    assert lines(tmp_path) == before


def test_stopping_and_going_on_takes_the_same_steps_as_never_stopping(tmp_path):
    whole, first, second = Walker(), Walker(), Walker()
    train(whole, float, tmp_path / "whole", SETTINGS)
    shorter = LoopSettings(steps=7, save_every=4, log_every=3, sample_every=5)
    train(first, float, tmp_path / "parts", shorter)
    assert train(second, float, tmp_path / "parts", SETTINGS) == 3
    assert torch.equal(second.total, whole.total)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    with pytest.raises(TrainingError, match=r"loss of step 5 is nan.*step-00000004"):
        train(Walker(poison_at=5), float, tmp_path, SETTINGS)
    assert newest_step(tmp_path).name == "step-00000004"


def test_an_error_while_making_a_batch_reaches_the_caller(tmp_path):
    def batches(step):
        if step == 2:
            raise OSError("the disk is gone")
        return 0.0

    with pytest.raises(OSError, match="the disk is gone"):
        train(Walker(), batches, tmp_path, SETTINGS)


def test_a_run_resumed_with_other_settings_is_refused(tmp_path):
    pin_settings(tmp_path, {"batch_size": 8, "betas": (0.9, 0.99)})
    pin_settings(tmp_path, {"batch_size": 8, "betas": (0.9, 0.99)})
    with pytest.raises(TrainingError, match="batch_size was 8, is 16"):
        pin_settings(tmp_path, {"batch_size": 16, "betas": (0.9, 0.99)})


def test_weights_come_back_after_an_evaluation_with_averages():
    model = torch.nn.Linear(2, 2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averages = {name: tensor + 1 for name, tensor in before.items()}
    with evaluating(model, averages):
        assert torch.equal(model.weight, averages["weight"])
        assert not model.training
    assert torch.equal(model.weight, before["weight"])
    assert model.training


def training_flags(out, photographs):
    return [
        "tiny", "--data", str(photographs), "--out", str(out), "--steps", "6", "--save-every", "2",
        "--log-every", "1", "--sample-every", "100", "--batch-size", "2", "--crop-size", "32",
        "--adversarial-start", "3", "--threads", "1",
    ]  # fmt: skip


def test_a_killed_tokenizer_run_goes_on_to_the_very_same_losses(photographs, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    victim = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train_tokenizer", *training_flags(killed, photographs)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while newest_step(killed) is None:
        assert victim.poll() is None
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert train_tokenizer.main(training_flags(killed, photographs)) == 0
    assert train_tokenizer.main(training_flags(whole, photographs)) == 0

    def losses(run):
        return [(line["step"], line["loss"]) for line in lines(run) if "loss" in line]

    assert losses(killed) == losses(whole)
    assert len(losses(whole)) == 6
