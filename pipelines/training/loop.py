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

from ops.checkpoint import (
    best_step,
    held_out_of,
    newest_step,
    prune_steps,
    skipped_of,
    step_folder,
    step_of,
    write_held_out,
    write_skipped,
)
from ops.config import UserError
from ops.disk_errors import disk_errors_explained
from ops.files import atomic_path
from ops.images import write_png
from ops.metrics_log import MetricsLog, read_metrics
from ops.ranks import ALONE, Ranks
from pipelines.console import interrupts_noted, progress_bar
from pipelines.training.optimizer import NonFiniteError
from pipelines.training.plots import plot_curves

Batch = TypeVar("Batch")
OnStep = Callable[[int, str], None]  # called with the number of steps done and a short note
BATCHES_AHEAD = 3  # made while a step is computed
KEYS_NAMED = 8  # in the message about a loss that is not finite


class TrainingError(UserError):
    """A run that cannot start or continue."""


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
        """Take one step. Returns scalars to log, `loss` among them, still on their device.

        Raises NonFiniteError, before any weight has changed, in all processes together.
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

    @abstractmethod
    def save(self, folder: Path | None) -> None:
        """Write model, averages and train_state.pt into `folder`.

        A collective, since each process may hold a shard; only rank 0 gets a folder.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""

    @abstractmethod
    def evaluate(self, step: int) -> Evaluation:
        """Held-out metrics and images after `step` steps; a collective."""


def train(
    train_task: TrainTask[Batch],
    source: Source[Batch],
    run: Path,
    settings: LoopSettings,
    ranks: Ranks = ALONE,
    on_step: OnStep | None = None,
) -> int:
    """Resume from the newest checkpoint in `run`; returns the number of steps taken.

    Without `on_step` a progress bar is shown. The caller must hold the run folder's lock. Raises
    TrainingError on a loss or gradient norm that is not finite, before that batch has changed the
    weights, unless more batches may be skipped; DiskError where the run folder cannot be written.
    """
    newest = newest_step(run)
    start = ranks.broadcast(step_of(newest) if newest else 0)
    if start:
        train_task.load(_visible(step_folder(run, start)))
    if start >= settings.steps:
        return 0
    with _log(run, start, ranks) as log, _shown(on_step, start, settings.steps) as tick:
        _Loop(train_task, source, run, settings, ranks, log).run_steps(start, tick)
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
        run: Path,
        settings: LoopSettings,
        ranks: Ranks,
        log: MetricsLog | None,
    ) -> None:
        self.train_task, self.source, self.run, self.settings = train_task, source, run, settings
        self.ranks, self.log = ranks, log
        best = best_step(run)
        self.lowest = ranks.broadcast(held_out_of(best) if best else math.inf)
        newest = newest_step(run)
        self.skipped = ranks.broadcast(skipped_of(newest) if newest else [])
        self.unlogged: list[Mapping[str, Tensor]] = []
        self.saved, self.saved_at = -1, time.monotonic()
        self.since = time.perf_counter()

    def run_steps(self, start: int, tick: OnStep) -> None:
        note = ""
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
                    raise KeyboardInterrupt

    def _take_step(self, batch: Batch, step: int) -> None:
        """Take a step, or leave its batch out where it is not finite and that is allowed."""
        may_skip = len(self.skipped) < self.settings.skip_non_finite
        state = self.train_task.forward_state() if may_skip else []
        before = [tensor.detach().clone() for tensor in state]
        try:
            self.unlogged.append(self.train_task.train_step(batch, step))
            return
        except NonFiniteError as error:
            names = self.ranks.gather(self.source.keys(step) if error.own else [])
            keys = [key for part in names for key in part] or self.source.keys(step)
            if not may_skip:
                raise TrainingError(self._describe(error, step, keys)) from None
        for tensor, value in zip(state, before, strict=True):
            tensor.detach().copy_(value)
        self.skipped.append(step)
        self._write(step + 1, {"skipped_steps": len(self.skipped)})

    def _describe(self, error: NonFiniteError, step: int, keys: Sequence[str]) -> str:
        good, allowed = newest_step(self.run), self.settings.skip_non_finite
        named = f" ({', '.join(keys[:KEYS_NAMED])}{', ...' if len(keys) > KEYS_NAMED else ''})"
        spent = f"{allowed} such batches were left out already. " if allowed else ""
        return (
            f"The {error.what} of step {step} is {error.value}; resuming would repeat its batch"
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
        """Log the mean of each metric since the last line."""
        if not self.unlogged:
            return ""
        taken, self.unlogged = self.unlogged, []
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for metrics in taken for name in metrics):
            values = torch.stack([metrics[name].float() for metrics in taken if name in metrics])
            means[name] = float(self.ranks.mean(values).mean())
        now = time.perf_counter()
        means["steps_per_second"] = len(taken) / (now - self.since)
        for name, amount in self.train_task.amounts().items():
            means[f"{name}_per_second"] = amount * means["steps_per_second"]
        self.since = now
        self._write(done, means)
        return f"loss {means['loss']:.4f}"

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
        if self.ranks.is_first:
            with disk_errors_explained(self.run):
                with atomic_path(step_folder(self.run, done)) as partial:
                    self.train_task.save(partial)
                    if math.isfinite(held_out):
                        write_held_out(partial, held_out)
                    if self.skipped:
                        write_skipped(partial, self.skipped)
                prune_steps(self.run, self.settings.keep)
        else:
            self.train_task.save(None)
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
