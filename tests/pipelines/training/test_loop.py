import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ops.checkpoint import best_step, newest_step, step_folders, step_of
from pipelines import train_prior, train_tokenizer
from pipelines.training.flags import pin_settings
from pipelines.training.loop import (
    Evaluation,
    LoopSettings,
    Source,
    TrainingError,
    TrainTask,
    train,
)
from pipelines.training.optimizer import evaluating

SETTINGS = LoopSettings(steps=10, save_every=4, log_every=3, sample_every=5)


class Walker(TrainTask[float]):
    """The least thing that can be trained: it adds up what it is given and what torch draws."""

    def __init__(self, poison=None, held_out=None):
        self.total = torch.zeros(())
        self.seen = []
        self.poison = poison or {}  # step -> the figure that is no number then
        self.held_out = held_out or {}  # step -> loss

    def train_step(self, batch, step):
        self.seen.append((step, batch))
        self.total += batch + torch.rand(())
        metrics = {"loss": self.total.clone(), "gradient_norm": torch.ones(())}
        if step in self.poison:
            metrics[self.poison[step]] = torch.tensor(float("nan"))
        return metrics

    def amounts(self):
        return {"codes": 500}

    def save(self, folder):
        assert folder is not None  # the only process is the first
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
        torch.save({"total": self.total}, folder / "train_state.pt")

    def load(self, folder):
        self.total = torch.load(folder / "train_state.pt", weights_only=True)["total"]

    def evaluate(self, step):
        dots = {"dots": np.zeros((4, 4, 3), np.uint8)}
        return Evaluation({"held_out": float(step)}, dots, self.held_out.get(step, math.inf))


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_checkpoints_figures_and_pictures(tmp_path):
    walker = Walker()
    assert train(walker, Source(float), tmp_path, SETTINGS) == 10
    assert walker.seen == [(step, float(step)) for step in range(10)]
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [8, 10]
    logged = lines(tmp_path)
    assert [line["step"] for line in logged if "loss" in line] == [3, 4, 5, 6, 8, 9, 10]
    assert [line["step"] for line in logged if "held_out" in line] == [5, 10]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "dots-00000005.png",
        "dots-00000010.png",
    ]
    assert (tmp_path / "curves.png").is_file()


def test_a_finished_run_does_nothing_the_second_time(tmp_path):
    train(Walker(), Source(float), tmp_path, SETTINGS)
    before = lines(tmp_path)
    again = Walker()
    assert train(again, Source(float), tmp_path, SETTINGS) == 0
    assert again.seen == []
    assert lines(tmp_path) == before


def test_stopping_and_going_on_takes_the_same_steps_as_never_stopping(tmp_path):
    whole, first, second = Walker(), Walker(), Walker()
    train(whole, Source(float), tmp_path / "whole", SETTINGS)
    shorter = LoopSettings(steps=7, save_every=4, log_every=3, sample_every=5)
    train(first, Source(float), tmp_path / "parts", shorter)
    assert train(second, Source(float), tmp_path / "parts", SETTINGS) == 3
    assert torch.equal(second.total, whole.total)


@pytest.mark.parametrize(
    ("figure", "words"), [("loss", "loss"), ("gradient_norm", "gradient norm")]
)
def test_a_figure_that_is_no_number_stops_the_run_and_is_never_saved(tmp_path, figure, words):
    source = Source(float, keys=lambda step: [f"{step}-{n}.jpg" for n in range(9)])
    with pytest.raises(TrainingError) as raised:
        train(Walker(poison={5: figure}), source, tmp_path, SETTINGS)
    condition_inputs = str(raised.value)
    assert (
        f"The {figure.replace('_', ' ')} of step 5 is nan; its batch (5-0.jpg, 5-1.jpg,"
        in condition_inputs
    )
    assert "5-7.jpg, ...)" in condition_inputs
    assert "newest good checkpoint is step-00000004" in condition_inputs
    assert newest_step(tmp_path).name == "step-00000004"


def test_the_best_checkpoint_outlives_newer_ones_and_is_not_where_to_go_on(tmp_path):
    held_out = {2: 3.0, 4: 1.5, 6: 2.0, 8: 1.5, 10: 9.0}
    often = LoopSettings(steps=12, save_every=3, log_every=3, sample_every=2)
    train(Walker(held_out=held_out), Source(float), tmp_path, often)
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [4, 9, 12]
    assert best_step(tmp_path).name == "step-00000004"
    assert json.loads((best_step(tmp_path) / "held_out.json").read_text()) == {"loss": 1.5}
    again = Walker(held_out={14: 1.6, 16: 1.4})
    longer = LoopSettings(steps=16, save_every=3, log_every=3, sample_every=2)
    train(again, Source(float), tmp_path, longer)
    assert again.seen[0][0] == 12
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [15, 16]
    assert best_step(tmp_path).name == "step-00000016"


def test_what_goes_through_a_step_is_logged_as_a_rate(tmp_path):
    train(Walker(), Source(float), tmp_path, SETTINGS)
    for line in lines(tmp_path):
        if "loss" in line:
            assert line["codes_per_second"] == pytest.approx(500 * line["steps_per_second"])


def test_an_interrupted_run_keeps_the_step_in_hand(tmp_path):
    class Interrupted(Walker):
        def train_step(self, batch, step):
            if step == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return super().train_step(batch, step)

    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(), Source(float), tmp_path / "parts", SETTINGS)
    assert newest_step(tmp_path / "parts").name == "step-00000007"
    whole, second = Walker(), Walker()
    assert train(second, Source(float), tmp_path / "parts", SETTINGS) == 3
    train(whole, Source(float), tmp_path / "whole", SETTINGS)
    assert torch.equal(second.total, whole.total)


def test_a_second_interrupt_stops_at_once(tmp_path):
    class Stuck(Walker):
        def train_step(self, batch, step):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one should have stopped this")

    with pytest.raises(KeyboardInterrupt):
        train(Stuck(), Source(float), tmp_path, SETTINGS)
    assert newest_step(tmp_path) is None


def test_an_error_while_making_a_batch_reaches_the_caller(tmp_path):
    def batches(step):
        if step == 2:
            raise OSError("the disk is gone")
        return 0.0

    with pytest.raises(OSError, match="the disk is gone"):
        train(Walker(), Source(batches), tmp_path, SETTINGS)


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


def kill_when_saved(command, run):
    """Start a command, and SIGKILL it once there is a checkpoint in `run`."""
    victim = subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while newest_step(run) is None:
        assert victim.poll() is None
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()


def losses(run):
    names = ("step", "loss", "discriminator_loss", "lecam_loss", "gradient_norm")
    return [[line.get(name) for name in names] for line in lines(run) if "loss" in line]


TRAINING = [
    "--steps", "6", "--save-every", "2", "--log-every", "1", "--sample-every", "100",
    "--threads", "1", "--accumulate", "2",
]  # fmt: skip


def test_a_killed_tokenizer_run_goes_on_to_the_very_same_losses(photographs, tmp_path):
    more = [
        "--batch-size", "2", "--crop-size", "32", "--adversarial-start", "1",
        "--adversarial-ramp", "3", "--lecam-weight", "0.1", "--r1-weight", "1",
    ]  # fmt: skip

    def flags(run):
        return ["tiny", "--data", str(photographs), "--out", str(tmp_path / run), *TRAINING, *more]

    kill_when_saved(["pipelines.train_tokenizer", *flags("killed")], tmp_path / "killed")
    assert train_tokenizer.main(flags("killed")) == 0
    assert train_tokenizer.main(flags("whole")) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6


def test_a_killed_prior_run_goes_on_to_the_very_same_losses(rule_store, tmp_path):
    more = ["--batch-size", "4", "--window", "4", "--conditions", "class"]

    def flags(run):
        return ["tiny", "--codes", str(rule_store), "--out", str(tmp_path / run), *TRAINING, *more]

    kill_when_saved(["pipelines.train_prior", *flags("killed")], tmp_path / "killed")
    assert train_prior.main(flags("killed")) == 0
    assert train_prior.main(flags("whole")) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6
