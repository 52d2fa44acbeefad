import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ops.checkpoint import (
    CheckpointError,
    best_step,
    newest_step,
    skipped_of,
    step_folders,
    step_of,
)
from ops.disk_errors import DiskError
from ops.tensor_files import save_state, save_tensors
from pipelines import train_prior, train_tokenizer
from pipelines.training.loop import (
    FINITE,
    Evaluation,
    LoopSettings,
    Source,
    TrainingError,
    TrainTask,
    train,
)
from pipelines.training.optimizer import evaluating
from pipelines.training.run_folder import RunFolder

SETTINGS = LoopSettings(steps=10, save_every=4, log_every=3, sample_every=5)


class Adder(TrainTask[float]):
    """A minimal train task: adds up its batches and random numbers of torch."""

    def __init__(self, poison=None, held_out=None):
        self.total = torch.zeros(())
        self.seen = []
        self.poison = poison or {}  # step -> the metric that is not finite then
        self.held_out = held_out or {}  # step -> loss

    def train_step(self, batch, step):
        self.seen.append((step, batch))
        self.total += batch + torch.rand(())
        metrics = {"loss": self.total.clone(), "gradient_norm": torch.ones(())}
        metrics[FINITE] = torch.tensor(step not in self.poison)
        if step in self.poison:
            metrics[self.poison[step].replace(" ", "_")] = torch.tensor(float("nan"))
        return metrics

    def forward_state(self):
        return [self.total]

    def amounts(self):
        return {"codes": 500}

    def snapshot(self):
        total = self.total.clone()
        return lambda folder, ranks: self.write(folder, total)

    def write(self, folder, total):
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
        torch.save({"total": total}, folder / "train_state.pt")

    def load(self, folder):
        self.total = torch.load(folder / "train_state.pt", weights_only=True)["total"]

    def evaluate(self, step):
        dots = {"dots": np.zeros((4, 4, 3), np.uint8)}
        return Evaluation({"held_out": float(step)}, dots, self.held_out.get(step, math.inf))


def each(batch):
    """The batches of a Source of which batch(step) makes one."""
    return lambda start, stop: map(batch, range(start, stop))


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_checkpoints_metrics_and_images(tmp_path):
    adder = Adder()
    assert train(adder, Source(each(float)), RunFolder(tmp_path), SETTINGS) == 10
    assert adder.seen == [(step, float(step)) for step in range(10)]
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
    train(Adder(), Source(each(float)), RunFolder(tmp_path), SETTINGS)
    before = lines(tmp_path)
    again = Adder()
    assert train(again, Source(each(float)), RunFolder(tmp_path), SETTINGS) == 0
    assert again.seen == []
    assert lines(tmp_path) == before


def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one(tmp_path):
    whole, first, second = Adder(), Adder(), Adder()
    train(whole, Source(each(float)), RunFolder(tmp_path / "whole"), SETTINGS)
    shorter = LoopSettings(steps=7, save_every=4, log_every=3, sample_every=5)
    train(first, Source(each(float)), RunFolder(tmp_path / "parts"), shorter)
    assert train(second, Source(each(float)), RunFolder(tmp_path / "parts"), SETTINGS) == 3
    assert torch.equal(second.total, whole.total)


@pytest.mark.parametrize("words", ["loss", "discriminator gradient norm"])
def test_a_step_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, words):
    source = Source(each(float), keys=lambda step: [f"{step}-{n}.jpg" for n in range(9)])
    with pytest.raises(TrainingError) as raised:
        train(Adder(poison={5: words}), source, RunFolder(tmp_path), SETTINGS)
    message = str(raised.value)
    assert f"The {words} of step 5 is nan; resuming would repeat its batch (5-0.jpg, 5-1" in message
    assert "5-7.jpg, ...)" in message
    assert "newest good checkpoint is step-00000004" in message
    assert newest_step(tmp_path).name == "step-00000004"
    assert "--skip-non-finite 1" in message


def test_skipped_steps_are_counted_over_the_attempts_of_a_run(tmp_path):
    def some(steps, skip):
        return LoopSettings(
            steps=steps, save_every=4, log_every=3, sample_every=100, skip_non_finite=skip
        )

    poison = dict.fromkeys((2, 3, 6, 9), "loss")
    whole, first, second = (Adder(poison) for _ in range(3))
    train(whole, Source(each(float)), RunFolder(tmp_path / "whole"), some(12, 4))
    train(first, Source(each(float)), RunFolder(tmp_path / "parts"), some(4, 2))
    train(second, Source(each(float)), RunFolder(tmp_path / "parts"), some(12, 4))
    assert torch.equal(second.total, whole.total)
    for run in ("whole", "parts"):
        assert skipped_of(newest_step(tmp_path / run)) == [2, 3, 6, 9]
    counts = [line.get("skipped_steps") for line in lines(tmp_path / "whole")]
    assert [count for count in counts if count] == [1, 2, 3, 4]
    train(Adder(poison), Source(each(float)), RunFolder(tmp_path / "few"), some(4, 2))
    with pytest.raises(TrainingError, match=r"2 such batches were left out already.*-finite 3"):
        train(Adder(poison), Source(each(float)), RunFolder(tmp_path / "few"), some(12, 2))
    assert newest_step(tmp_path / "few").name == "step-00000004"


def test_a_skipped_step_leaves_what_its_forward_pass_changed_as_it_was(tmp_path):
    def batch(step):
        return float(step) if step != 5 else 1000.0

    settings = LoopSettings(steps=10, save_every=4, log_every=3, sample_every=5, skip_non_finite=1)
    skipping = Adder({5: "loss"})
    train(skipping, Source(each(batch)), RunFolder(tmp_path), settings)
    assert 40 <= float(skipping.total) < 50  # 0 + ... + 9 without 5, and nine numbers below 1


def test_a_checkpoint_is_written_when_the_last_one_is_old_enough(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    ticking = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr("pipelines.training.loop.time", ticking)
    often = LoopSettings(
        steps=10, save_every=100, log_every=100, sample_every=100, save_minutes=1, keep=9
    )
    timed, untimed = Adder(), Adder()
    train(timed, Source(each(float)), RunFolder(tmp_path / "timed"), often)
    steps = [step_of(folder) for folder in step_folders(tmp_path / "timed")]
    assert steps == [3, 6, 9, 10]  # a look at the clock each step, and one at each checkpoint
    seldom = LoopSettings(steps=10, save_every=100, log_every=100, sample_every=100)
    train(untimed, Source(each(float)), RunFolder(tmp_path / "untimed"), seldom)
    assert torch.equal(timed.total, untimed.total)


def test_a_disk_that_is_full_ends_the_run_in_one_line_and_keeps_the_last_checkpoint(tmp_path):
    class Growing(Adder):
        def write(self, folder, total):
            super().write(folder, total)
            more = torch.zeros(1 if "step-00000004" in folder.name else 1 << 16)
            save_state(folder / "train_state.pt", {"total": total, "more": more})

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, before[1]))
    try:
        with pytest.raises(DiskError, match=r"train_state.pt: File too large"):
            train(Growing(), Source(each(float)), RunFolder(tmp_path), SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000004"]


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path):
    written = threading.Event()

    class Slow(Adder):
        def write(self, folder, total):
            assert written.wait(30)
            super().write(folder, total)

        def train_step(self, batch, step):
            if step == 6:
                assert newest_step(tmp_path) is None
                written.set()
            return super().train_step(batch, step)

    slow = Slow()
    assert train(slow, Source(each(float)), RunFolder(tmp_path), SETTINGS) == 10
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [8, 10]
    whole, parts = Adder(), Adder()
    train(whole, Source(each(float)), RunFolder(tmp_path / "whole"), SETTINGS)
    shutil.rmtree(tmp_path / "step-00000010")  # what was saved is the state after step 8
    train(parts, Source(each(float)), RunFolder(tmp_path), SETTINGS)
    assert torch.equal(parts.total, whole.total)


def test_a_failing_disk_ends_the_run_at_the_next_log_line(tmp_path):
    class Failing(Adder):
        def write(self, folder, total):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "ema.safetensors"))

        def train_step(self, batch, step):
            if step == 6:  # the checkpoint after step 4 has failed meanwhile
                time.sleep(0.2)
            return super().train_step(batch, step)

    failing = Failing()
    with pytest.raises(DiskError, match=r"ema.safetensors: No space left on device. Make room"):
        train(failing, Source(each(float)), RunFolder(tmp_path), SETTINGS)
    assert len(failing.seen) < 10
    assert list(tmp_path.glob("step-*")) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Diverging(Adder):
        def write(self, folder, total):
            save_tensors(folder / "model.safetensors", {"total": total / 0})

    with pytest.raises(CheckpointError, match="total holds values that are nan or infinite"):
        train(Diverging(), Source(each(float)), RunFolder(tmp_path), SETTINGS)
    assert step_folders(tmp_path) == []


def test_the_best_checkpoint_is_kept_and_the_newest_is_resumed(tmp_path):
    held_out = {2: 3.0, 4: 1.5, 6: 2.0, 8: 1.5, 10: 9.0}
    often = LoopSettings(steps=12, save_every=3, log_every=3, sample_every=2)
    train(Adder(held_out=held_out), Source(each(float)), RunFolder(tmp_path), often)
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [4, 9, 12]
    assert best_step(tmp_path).name == "step-00000004"
    assert json.loads((best_step(tmp_path) / "held_out.json").read_text()) == {"loss": 1.5}
    again = Adder(held_out={14: 1.6, 16: 1.4})
    longer = LoopSettings(steps=16, save_every=3, log_every=3, sample_every=2)
    train(again, Source(each(float)), RunFolder(tmp_path), longer)
    assert again.seen[0][0] == 12
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [15, 16]
    assert best_step(tmp_path).name == "step-00000016"


def test_amounts_are_logged_as_rates(tmp_path):
    train(Adder(), Source(each(float)), RunFolder(tmp_path), SETTINGS)
    for line in lines(tmp_path):
        if "loss" in line:
            assert line["codes_per_second"] == pytest.approx(500 * line["steps_per_second"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_the_step_under_way(tmp_path, number):
    class Interrupted(Adder):
        def train_step(self, batch, step):
            if step == 6:
                os.kill(os.getpid(), number)
            return super().train_step(batch, step)

    with pytest.raises(KeyboardInterrupt) as raised:
        train(Interrupted(), Source(each(float)), RunFolder(tmp_path / "parts"), SETTINGS)
    assert raised.value.exit_code == 128 + number
    assert newest_step(tmp_path / "parts").name == "step-00000007"
    whole, second = Adder(), Adder()
    assert train(second, Source(each(float)), RunFolder(tmp_path / "parts"), SETTINGS) == 3
    train(whole, Source(each(float)), RunFolder(tmp_path / "whole"), SETTINGS)
    assert torch.equal(second.total, whole.total)


def test_a_second_interrupt_stops_at_once(tmp_path):
    class Stuck(Adder):
        def train_step(self, batch, step):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one should have stopped this")

    with pytest.raises(KeyboardInterrupt):
        train(Stuck(), Source(each(float)), RunFolder(tmp_path), SETTINGS)
    assert newest_step(tmp_path) is None


def test_an_error_while_making_a_batch_reaches_the_caller(tmp_path):
    def batches(step):
        if step == 2:
            raise OSError("the disk is gone")
        return 0.0

    with pytest.raises(OSError, match="the disk is gone"):
        train(Adder(), Source(each(batches)), RunFolder(tmp_path), SETTINGS)


def test_weights_are_restored_after_an_evaluation_with_averages():
    model = torch.nn.Linear(2, 2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averages = {name: tensor + 1 for name, tensor in before.items()}
    with evaluating(model, averages):
        assert torch.equal(model.weight, before["weight"] + 1)
        assert not model.training
    assert torch.equal(model.weight, before["weight"])
    assert torch.equal(averages["weight"], before["weight"] + 1)
    assert model.training


def kill_when_saved(command, run):
    """Start a command, and SIGKILL it once `run` has a checkpoint."""
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


def test_a_killed_and_resumed_tokenizer_run_has_identical_losses(photographs, tmp_path):
    more = [
        "--batch-size", "2", "--crop-size", "32", "--adversarial-start", "1",
        "--adversarial-ramp", "3", "--lecam-weight", "0.1", "--r1-weight", "1",
        "--num-workers", "0",
    ]  # fmt: skip

    def flags(run):
        return ["tiny", "--data", str(photographs), "--out", str(tmp_path / run), *TRAINING, *more]

    kill_when_saved(["pipelines.train_tokenizer", *flags("killed")], tmp_path / "killed")
    assert train_tokenizer.main(flags("killed")) == 0
    assert train_tokenizer.main(flags("whole")) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6


def test_a_killed_and_resumed_prior_run_has_identical_losses(rule_store, tmp_path):
    more = ["--batch-size", "4", "--window", "4", "--conditions", "class"]

    def flags(run):
        return ["tiny", "--codes", str(rule_store), "--out", str(tmp_path / run), *TRAINING, *more]

    kill_when_saved(["pipelines.train_prior", *flags("killed")], tmp_path / "killed")
    assert train_prior.main(flags("killed")) == 0
    assert train_prior.main(flags("whole")) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6
