"""The loop that both trainers share: steps, checkpoints, figures, pictures, resuming.

A run is a function of its settings: batch and randomness of a step are functions of (seed, step),
so a run that was killed and started again takes the same steps as one that was not. Several
processes run the loop side by side, each on its part of every batch; the first of them writes.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ops.checkpoint import (
    best_step,
    held_out_of,
    newest_step,
    prune_steps,
    step_folder,
    step_of,
    write_held_out,
)
from ops.config import UserError
from ops.files import atomic_path
from ops.images import write_png
from ops.ranks import ALONE, Ranks
from ops.runtime import MetricsLog, read_metrics
from pipelines.console import interrupts_noted, progress_bar
from pipelines.training.plots import curves_picture

Batch = TypeVar("Batch")
OnStep = Callable[[int, str], None]  # told how many steps are done, and a note about them
BATCHES_AHEAD = 3
KEYS_NAMED = 8
# A gradient gone wrong spoils the weights one step on; those of a critic spoil the model's later.
MUST_BE_FINITE = ("loss", "gradient_norm", "discriminator_loss", "discriminator_gradient_norm")


class TrainingError(UserError):
    """A run that cannot start or go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How long a run goes and how often it leaves something behind, in steps."""

    steps: int
    save_every: int
    log_every: int
    sample_every: int
    keep: int = 2
    seed: int = 0


class Evaluation(NamedTuple):
    """What is found on samples that never train."""

    metrics: dict[str, float]
    pictures: dict[str, np.ndarray]  # uint8 (H, W, 3) by name
    loss: float = math.inf  # by which the best checkpoint is known: lower is better


@dataclass(frozen=True)
class Source(Generic[Batch]):
    """Where a run's batches come from, both functions of the step alone, called in threads."""

    batch: Callable[[int], Batch]
    """this process's part of a step's batch"""
    keys: Callable[[int], list[str]] = field(default=lambda step: [])
    """the keys of that part's samples, to name them where training goes wrong"""


class TrainTask(ABC, Generic[Batch]):
    """What the loop trains: a model with its optimizers and averages."""

    @abstractmethod
    def train_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step; scalars to log, `loss` among them, still on their device."""

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Called on each batch in the thread that made it, ahead of its step."""
        return batch

    def amounts(self) -> Mapping[str, int]:
        """What all processes together go through in a step, by name, to log its rate."""
        return {}

    @abstractmethod
    def save(self, folder: Path | None) -> None:
        """Write model, averages and train_state.pt into a step folder being built.

        Every process is asked, since each may hold a part; only the first is given a folder.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""

    @abstractmethod
    def evaluate(self, step: int) -> Evaluation:
        """Held-out figures and pictures. Every process is asked, and must be."""


def train(
    train_task: TrainTask[Batch],
    source: Source[Batch],
    run: Path,
    settings: LoopSettings,
    ranks: Ranks = ALONE,
    on_step: OnStep | None = None,
) -> int:
    """Take the steps that `run` lacks; returns how many were taken.

    Without `on_step` a progress bar is shown. The caller sees to it that nobody else trains in
    `run`. Raises TrainingError on a loss that is not finite.
    """
    newest = newest_step(run)
    start = ranks.broadcast(step_of(newest) if newest else 0)
    if start:
        train_task.load(_visible(step_folder(run, start)))
    if start >= settings.steps:
        return 0
    with _log(run, start, ranks) as log, _shown(on_step, start, settings.steps) as tick:
        _Loop(train_task, source, run, settings, ranks, log).go(start, tick)
    return settings.steps - start


def _visible(folder: Path) -> Path:
    if not folder.is_dir():
        raise TrainingError(
            f"{folder} was written by the first worker and is not to be seen by this one. "
            "--out must lie on a file system that every node shares."
        )
    return folder


def _log(run: Path, start: int, ranks: Ranks) -> AbstractContextManager[MetricsLog | None]:
    return MetricsLog(run, after_step=start) if ranks.is_first else nullcontext()


@contextmanager
def _shown(on_step: OnStep | None, start: int, steps: int) -> Iterator[OnStep]:
    """What to call after each step."""
    if on_step is not None:
        yield on_step
        return
    with progress_bar("step") as bar:
        task = bar.add_task("train", total=steps, completed=start, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


class _Loop(Generic[Batch]):
    """One stretch of steps; holds what is between two lines of the log."""

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
        self.unlogged: list[Mapping[str, Tensor]] = []
        self.saved = -1
        self.since = time.perf_counter()

    def go(self, start: int, tick: OnStep) -> None:
        note = ""
        with interrupts_noted() as interrupted:
            for step, batch in _ahead(self._batch, start, self.settings.steps):
                torch.manual_seed(step_seed(self.settings.seed, step, self.ranks.rank))
                self.unlogged.append(self.train_task.train_step(batch, step))
                note = self._after(step + 1) or note
                tick(step + 1, note)
                if interrupted():
                    self._flush(step + 1)
                    self._save(step + 1)
                    raise KeyboardInterrupt

    def _batch(self, step: int) -> Batch:
        return self.train_task.prepare(self.source.batch(step), step)

    def _after(self, done: int) -> str:
        """What is due after `done` steps; the note beside the bar, if it changed."""
        settings, last = self.settings, done == self.settings.steps
        saves = last or done % settings.save_every == 0
        samples = last or done % settings.sample_every == 0
        note = ""
        if saves or samples or done % settings.log_every == 0:
            note = self._flush(done)
        held_out = self._evaluate(done) if samples else math.inf
        if saves or held_out < self.lowest:
            self._save(done, held_out)
        return note

    def _flush(self, done: int) -> str:
        """Log the mean of each figure since the last line; stop the run on one gone wrong."""
        if not self.unlogged:
            return ""
        taken, self.unlogged = self.unlogged, []
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for metrics in taken for name in metrics):
            values = torch.stack([metrics[name].float() for metrics in taken if name in metrics])
            values = self.ranks.mean(values)
            if name in MUST_BE_FINITE:
                self._check(name, values.tolist(), done - len(values))
            means[name] = float(values.mean())
        now = time.perf_counter()
        means["steps_per_second"] = len(taken) / (now - self.since)
        for name, amount in self.train_task.amounts().items():
            means[f"{name}_per_second"] = amount * means["steps_per_second"]
        self.since = now
        self._write(done, means)
        return f"loss {means['loss']:.4f}"

    def _check(self, name: str, values: list[float], first_step: int) -> None:
        """Raise TrainingError for the first of a figure's values that is no finite number."""
        for step, value in enumerate(values, first_step):
            if not math.isfinite(value):
                raise TrainingError(self._describe(name.replace("_", " "), step, value))

    def _describe(self, name: str, step: int, value: float) -> str:
        good, keys = newest_step(self.run), self.source.keys(step)
        named = f" ({', '.join(keys[:KEYS_NAMED])}{', ...' if len(keys) > KEYS_NAMED else ''})"
        return (
            f"The {name} of step {step} is {value}; its batch{named if keys else ''} is the one "
            f"that (seed, step) names. The newest good checkpoint is "
            f"{good.name if good else 'none'}. Run again with a lower learning rate and another "
            "--out, or look at those samples."
        )

    def _write(self, done: int, metrics: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.log(done, metrics)

    def _evaluate(self, done: int) -> float:
        """Log what the trainee finds on held-out samples; their loss as the first process has it.

        That one decides for all: whether to save must not hang on another machine's last bits.
        """
        evaluation = self.train_task.evaluate(done)
        if evaluation.metrics:
            self._write(done, evaluation.metrics)
        if self.log is not None:
            for name, image in evaluation.pictures.items():
                folder = self.run / "samples"
                folder.mkdir(exist_ok=True)
                write_png(folder / f"{name}-{done:08d}.png", image)
                self.log.image(done, name, image)
            self._draw_curves(self.log.path)
        self.since = time.perf_counter()
        return self.ranks.broadcast(evaluation.loss)

    def _draw_curves(self, metrics: Path) -> None:
        picture = curves_picture(read_metrics(metrics))
        if picture is not None:
            write_png(self.run / "curves.png", picture)

    def _save(self, done: int, held_out: float = math.inf) -> None:
        if done == self.saved:
            return
        if self.ranks.is_first:
            with atomic_path(step_folder(self.run, done)) as partial:
                self.train_task.save(partial)
                if math.isfinite(held_out):
                    write_held_out(partial, held_out)
            prune_steps(self.run, self.settings.keep)
        else:
            self.train_task.save(None)
        self.saved, self.lowest = done, min(self.lowest, held_out)
        self.since = time.perf_counter()


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """torch's seed for what a process draws in a step (dropout, restarted codes): no state to
    carry over. The first process draws as a run of one process does."""
    return (seed * 1_000_003 + step + (rank << 40)) % 2**63


def _ahead(batches: Callable[[int], Batch], start: int, stop: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) in order, the next few being made in a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(start, stop):
                while len(waiting) < BATCHES_AHEAD and step + len(waiting) < stop:
                    waiting.append(pool.submit(batches, step + len(waiting)))
                yield step, waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
