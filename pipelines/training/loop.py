"""The training loop of tokenizers and priors: steps, checkpoints, metrics, images, resuming.

A run is a function of its settings: a step's batch and random numbers are functions of (seed,
step), so a killed and resumed run takes the same steps as an uninterrupted one. With several
processes each runs the loop on its part of every batch; rank 0 writes.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ops.checkpoint import newest_step, skipped_of, step_of
from ops.disk_errors import disk_errors_explained
from ops.images import write_png
from ops.metrics_log import MetricsLog, read_metrics
from ops.ranks import ALONE, Ranks
from pipelines.console import interrupts_noted, progress_bar
from pipelines.training.checkpoint_writer import CheckpointWriter, WriteState
from pipelines.training.plots import plot_curves
from pipelines.training.run_folder import RunFolder, TrainingError

Batch = TypeVar("Batch")
OnStep = Callable[[int, str], None]  # called with the number of steps done and a short note
BATCHES_AHEAD = 3  # made while a step is computed
KEYS_NAMED = 8  # in the message about a loss that is not finite
FINITE = "finite"  # the metric that says whether a step was taken
#: Metrics of which one is not finite where a step was not taken, as messages name them.
CHECKED = ("loss", "gradient_norm", "discriminator_loss", "discriminator_gradient_norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How long a run is and how often it saves, logs and evaluates, in steps.

    Only `steps`, `seed` and `skip_non_finite` decide the result.
    """

    steps: int
    save_every: int
    log_every: int
    sample_every: int
    keep: int = 2
    """newest checkpoints to keep, in addition to the best one"""
    seed: int = 0
    save_minutes: float = 15.0
    """a checkpoint is also written when the last one is this old"""
    skip_non_finite: int = 0
    """batches, of the whole run, that may be left out for a loss or gradient that is not finite"""


class Evaluation(NamedTuple):
    """Results on held-out samples."""

    metrics: dict[str, float]
    images: dict[str, np.ndarray]  # uint8 (H, W, 3) by name
    loss: float = math.inf  # chooses the best checkpoint: lower is better


@dataclass(frozen=True)
class Source(Generic[Batch]):
    """Where a run's batches come from. A step's batch must be a function of the step alone."""

    batches: Callable[[int, int], Iterator[Batch]]
    """(start, stop) -> this process's part of the batch of each step, in order; used in a thread"""
    keys: Callable[[int], list[str]] = field(default=lambda step: [])
    """step -> the keys of that part's samples, for error messages"""


class TrainTask(ABC, Generic[Batch]):
    """What one training step of a model is; holds the model, its optimizers and averages."""

    @abstractmethod
    def train_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Take one step. Returns scalars to log, still on their device: nothing waits for a GPU.

        Among them are `loss` and FINITE, 1 where the step was taken and 0 where a loss or gradient
        norm of any process was not finite, so that no weight was changed.
        """

    def forward_state(self) -> list[Tensor]:
        """The tensors that the forward pass of a step changes, as running statistics."""
        return []

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Preprocess a step's batch; called in the thread that makes batches ahead."""
        return batch

    def amounts(self) -> Mapping[str, int]:
        """Number of samples or codes of one step over all processes, by name, to log rates."""
        return {}

    def peak_share(self, steps_per_second: float) -> float | None:
        """The share of the devices' highest bfloat16 rate in use at this speed; None if unknown."""
        return None

    def description(self) -> Mapping[str, str]:
        """What computes the steps, to be logged: the device, the precision."""
        return {}

    @abstractmethod
    def snapshot(self) -> WriteState:
        """Copy this process's part of model, averages and optimizer state to the CPU.

        Returns the function that writes the copy into an existing folder: config.json,
        model.safetensors, ema.safetensors and train_state.pt at least.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Restore what a snapshot wrote."""

    @abstractmethod
    def evaluate(self, step: int) -> Evaluation:
        """Held-out metrics and images after `step` steps; a collective."""


def train(
    train_task: TrainTask[Batch],
    source: Source[Batch],
    run: RunFolder,
    settings: LoopSettings,
    ranks: Ranks = ALONE,
    on_step: OnStep | None = None,
) -> int:
    """Resume from the newest checkpoint in `run`; returns the number of steps taken.

    Without `on_step` a progress bar is shown. The caller must hold the run folder's lock. Raises
    TrainingError where a loss or gradient norm of the steps since the last log line was not finite,
    which changed no weight, unless more batches may be skipped; DiskError where the run folder
    cannot be written.
    """
    newest = ranks.broadcast(newest_step(run.folder))
    start = step_of(newest) if newest else 0
    if newest:
        train_task.load(_visible(newest))
    if start >= settings.steps:
        return 0
    with (
        _log(run.folder, start, ranks) as log,
        _shown(on_step, start, settings.steps) as tick,
        CheckpointWriter(run, ranks, settings.keep) as writer,
    ):
        _Loop(train_task, source, run, settings, ranks, log, writer).run_steps(start, tick)
    return settings.steps - start


def _visible(folder: Path) -> Path:
    if not folder.is_dir():
        raise TrainingError(
            f"{folder} was written by the first worker but does not exist for this one. "
            "--out must lie on a file system that every node shares."
        )
    return folder


def _log(run: Path, start: int, ranks: Ranks) -> AbstractContextManager[MetricsLog | None]:
    return MetricsLog(run, after_step=start) if ranks.is_first else nullcontext()


@contextmanager
def _shown(on_step: OnStep | None, start: int, steps: int) -> Iterator[OnStep]:
    """The callback after each step: `on_step`, or else one that updates a progress bar."""
    if on_step is not None:
        yield on_step
        return
    with progress_bar("step") as bar:
        task = bar.add_task("train", total=steps, completed=start, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


class _Loop(Generic[Batch]):
    """One attempt's steps, with the metrics that are not logged yet."""

    def __init__(
        self,
        train_task: TrainTask[Batch],
        source: Source[Batch],
        run: RunFolder,
        settings: LoopSettings,
        ranks: Ranks,
        log: MetricsLog | None,
        writer: CheckpointWriter,
    ) -> None:
        self.train_task, self.source, self.settings = train_task, source, settings
        self.run = run.folder
        self.ranks, self.log, self.writer = ranks, log, writer
        self.lowest = ranks.broadcast(run.lowest_loss() if ranks.is_first else math.inf)
        newest = newest_step(self.run)
        self.skipped = ranks.broadcast(skipped_of(newest) if newest else [])
        self.unlogged: list[tuple[int, Mapping[str, Tensor]]] = []  # with their steps
        self.saved, self.saved_at = -1, time.monotonic()
        self.since = time.perf_counter()

    def run_steps(self, start: int, tick: OnStep) -> None:
        note, description = "", self.train_task.description()
        if self.log is not None and description:
            with disk_errors_explained(self.run):
                self.log.describe(start, description)
        ahead = closing(_ahead(self._batches(start)))
        with interrupts_noted() as interrupted, ahead as batches:
            for step, batch in enumerate(batches, start):
                torch.manual_seed(step_seed(self.settings.seed, step, self.ranks.rank))
                self._take_step(batch, step)
                note = self._after(step + 1) or note
                tick(step + 1, note)
                if interrupted():
                    self._flush(step + 1)
                    self._save(step + 1)
                    self.writer.wait()
                    raise KeyboardInterrupt

    def _take_step(self, batch: Batch, step: int) -> None:
        """Take a step; where it is not finite and may be skipped, it changes nothing at all."""
        state = self.train_task.forward_state() if self.settings.skip_non_finite else []
        before = [tensor.detach().clone() for tensor in state]
        metrics = self.train_task.train_step(batch, step)
        for tensor, value in zip(state, before, strict=True):
            tensor.detach().copy_(torch.where(metrics[FINITE] > 0, tensor.detach(), value))
        self.unlogged.append((step, metrics))

    def _skip(self, step: int, own: Mapping[str, float], mean: Mapping[str, float]) -> None:
        """Count a step that was not finite; raises TrainingError where there are too many.

        `own` are this process's metrics of the step, `mean` those of all.
        """
        allowed = self.settings.skip_non_finite
        if len(self.skipped) < allowed:
            self.skipped.append(step)
            self._write(step + 1, {"skipped_steps": len(self.skipped)})
            return
        bad = [name for name in CHECKED if not math.isfinite(mean.get(name, 0.0))]
        has_it = any(not math.isfinite(own.get(name, 0.0)) for name in CHECKED)
        names = self.ranks.gather(self.source.keys(step) if has_it else [])
        keys = [key for part in names for key in part] or self.source.keys(step)
        what = bad[0] if bad else "loss"
        self.writer.wait()  # so that the message names the newest checkpoint
        raise TrainingError(self._describe(what.replace("_", " "), mean[what], step, keys))

    def _describe(self, what: str, value: float, step: int, keys: Sequence[str]) -> str:
        good, allowed = newest_step(self.run), self.settings.skip_non_finite
        named = f" ({', '.join(keys[:KEYS_NAMED])}{', ...' if len(keys) > KEYS_NAMED else ''})"
        spent = f"{allowed} such batches were left out already. " if allowed else ""
        return (
            f"The {what} of step {step} is {value}; resuming would repeat its batch"
            f"{named if keys else ''}. {spent}The newest good checkpoint is "
            f"{good.name if good else 'none'}. Look at those samples, run again with a lower "
            f"learning rate and another --out, or leave out up to {allowed + 1} such batches by "
            f"--skip-non-finite {allowed + 1}."
        )

    def _batches(self, start: int) -> Generator[Batch, None, None]:
        for step, batch in enumerate(self.source.batches(start, self.settings.steps), start):
            yield self.train_task.prepare(batch, step)

    def _after(self, done: int) -> str:
        """Log, evaluate and save where due; returns the progress bar's note, if it changed."""
        settings, last = self.settings, done == self.settings.steps
        late = time.monotonic() - self.saved_at >= 60 * settings.save_minutes
        saves = last or done % settings.save_every == 0 or self.ranks.any(late)
        samples = last or done % settings.sample_every == 0
        note = ""
        if saves or samples or done % settings.log_every == 0:
            note = self._flush(done)
        held_out = self._evaluate(done) if samples else math.inf
        if saves or held_out < self.lowest:
            self._save(done, held_out)
        return note

    def _flush(self, done: int) -> str:
        """Log the mean of each metric since the last line; the only place that reads them."""
        self.writer.check()
        if not self.unlogged:
            return ""
        (steps, tables), self.unlogged = zip(*self.unlogged, strict=True), []
        taken = []
        for step, own, mean in zip(steps, *self._read(tables), strict=True):
            if mean[FINITE] < 1:
                self._skip(step, own, mean)
            else:
                taken.append(mean)
        if not taken:
            return ""
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for metrics in taken for name in metrics if name != FINITE):
            values = [metrics[name] for metrics in taken if name in metrics]
            means[name] = sum(values) / len(values)
        return self._log_means(done, means, len(taken))

    def _read(
        self, tables: Sequence[Mapping[str, Tensor]]
    ) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """The metrics of some steps as numbers: this process's own, and the means of all."""
        device = tables[0]["loss"].device
        scalars = [value for metrics in tables for value in metrics.values()]
        # One copy from the device for all of them.
        own = torch.stack([s.detach().float().to(device, non_blocking=True) for s in scalars]).cpu()
        found = []
        for values in (own.tolist(), self.ranks.mean(own).tolist()):
            numbers = iter(values)
            found.append([{name: next(numbers) for name in metrics} for metrics in tables])
        return found[0], found[1]

    def _log_means(self, done: int, means: dict[str, float], count: int) -> str:
        """Write the means of `count` steps with their rates; returns the progress bar's note."""
        now = time.perf_counter()
        rate = means["steps_per_second"] = count / (now - self.since)
        notes = [f"loss {means['loss']:.4f}"]
        for name, amount in self.train_task.amounts().items():
            means[f"{name}_per_second"] = amount * rate
            notes.append(f"{amount * rate:,.0f} {name}/s")
        share = self.train_task.peak_share(rate)
        if share is not None:
            means["peak_share"] = share
            notes.append(f"{share:.0%} of the bfloat16 peak")
        self.since = now
        self._write(done, means)
        return ", ".join(notes)

    def _write(self, done: int, metrics: Mapping[str, float]) -> None:
        if self.log is not None:
            with disk_errors_explained(self.run):
                self.log.log(done, metrics)

    def _evaluate(self, done: int) -> float:
        """Log the held-out metrics; returns rank 0's held-out loss.

        Losses may differ in their last bits between machines, but all must agree whether to save.
        """
        evaluation = self.train_task.evaluate(done)
        if evaluation.metrics:
            self._write(done, evaluation.metrics)
        if self.log is not None:
            with disk_errors_explained(self.run):
                for name, image in evaluation.images.items():
                    folder = self.run / "samples"
                    folder.mkdir(exist_ok=True)
                    write_png(folder / f"{name}-{done:08d}.png", image)
                    self.log.image(done, name, image)
                self._draw_curves(self.log.path)
        self.since = time.perf_counter()
        return self.ranks.broadcast(evaluation.loss)

    def _draw_curves(self, metrics: Path) -> None:
        image = plot_curves(read_metrics(metrics))
        if image is not None:
            write_png(self.run / "curves.png", image)

    def _save(self, done: int, held_out: float = math.inf) -> None:
        if done == self.saved:
            return
        self.writer.wait()  # before another copy of the state takes memory
        self.writer.start(self.train_task.snapshot(), done, held_out, self.skipped)
        if done == self.settings.steps:
            self.writer.wait()
        self.saved, self.saved_at = done, time.monotonic()
        self.lowest = min(self.lowest, held_out)
        self.since = time.perf_counter()


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of torch's generator in one step (dropout, restarted codes), so that resuming needs
    no generator state. Rank 0 draws what a run of one process draws."""
    return (seed * 1_000_003 + step + (rank << 40)) % 2**63


def _ahead(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The same batches, the next BATCHES_AHEAD made in a thread meanwhile."""
    end = object()
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting: deque[Future[Any]] = deque(
                pool.submit(next, batches, end) for _ in range(BATCHES_AHEAD)
            )
            try:
                while (batch := waiting.popleft().result()) is not end:
                    waiting.append(pool.submit(next, batches, end))
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        batches.close()  # ends the processes that make batches, if there are any
