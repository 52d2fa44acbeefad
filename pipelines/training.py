"""The loop that both trainers share: steps, checkpoints, figures, pictures, resuming.

A run is a function of its settings: batch and randomness of a step are functions of (seed, step),
so a run that was killed and started again takes the same steps as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ops.checkpoint import newest_step, prune_steps, step_folder, step_of
from ops.config import UserError
from ops.files import atomic_path, exclusive_lock, write_json
from ops.images import write_png
from ops.runtime import MetricsLog
from pipelines.progress import progress_bar

Batch = TypeVar("Batch")
BATCHES_AHEAD = 3


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


class Trainee(ABC, Generic[Batch]):
    """What the loop trains: a model with its optimizers and averages."""

    @abstractmethod
    def train_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step; scalars to log, `loss` among them, still on their device."""

    def prepare(self, batch: Batch) -> Batch:
        """Called on each batch in the thread that made it, ahead of its step."""
        return batch

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write model, averages and train_state.pt into a step folder being built."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""

    @abstractmethod
    def evaluate(self, step: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out figures, and pictures uint8 (H, W, 3), by name."""


def train(
    trainee: Trainee[Batch], batches: Callable[[int], Batch], run: Path, settings: LoopSettings
) -> int:
    """Take the steps that `run` lacks; returns how many were taken.

    `batches(step)` is called ahead of time in threads and must depend on nothing but the step.
    Raises TrainingError on a loss that is not finite, LockedError where another process trains.
    """
    run.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(run / ".lock"):
        newest = newest_step(run)
        start = step_of(newest) if newest else 0
        if newest:
            trainee.load(newest)
        if start >= settings.steps:
            return 0
        with MetricsLog(run, after_step=start) as log, progress_bar("step") as bar:
            task = bar.add_task("train", total=settings.steps, completed=start, note="")
            _Loop(trainee, run, settings, log).go(
                batches, start, lambda note: bar.update(task, advance=1, note=note)
            )
    return settings.steps - start


class _Loop(Generic[Batch]):
    """One stretch of steps; holds what is between two lines of the log."""

    def __init__(
        self, trainee: Trainee[Batch], run: Path, settings: LoopSettings, log: MetricsLog
    ) -> None:
        self.trainee, self.run, self.settings, self.log = trainee, run, settings, log
        self.unlogged: list[Mapping[str, Tensor]] = []
        self.since = time.perf_counter()

    def go(self, batches: Callable[[int], Batch], start: int, tick: Callable[[str], None]) -> None:
        note, done = "", start
        try:
            for step, batch in _ahead(
                lambda step: self.trainee.prepare(batches(step)), start, self.settings.steps
            ):
                torch.manual_seed(step_seed(self.settings.seed, step))
                self.unlogged.append(self.trainee.train_step(batch, step))
                done = step + 1
                note = self._after(done) or note
                tick(note)
        except KeyboardInterrupt:
            self._flush(done)
            self._save(done)
            raise

    def _after(self, done: int) -> str:
        """What is due after `done` steps; the note beside the bar, if it changed."""
        settings, last = self.settings, done == self.settings.steps
        note = ""
        if last or done % settings.log_every == 0 or done % settings.save_every == 0:
            note = self._flush(done)
        if last or done % settings.sample_every == 0:
            self._evaluate(done)
        if last or done % settings.save_every == 0:
            self._save(done)
        return note

    def _flush(self, done: int) -> str:
        """Log the mean of each figure since the last line; stop the run on a loss gone wrong."""
        if not self.unlogged:
            return ""
        losses = torch.stack([figures["loss"].float() for figures in self.unlogged]).cpu()
        first_step = done - len(self.unlogged)
        for offset, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise TrainingError(self._describe(first_step + offset, loss))
        figures = {
            name: float(torch.stack([f[name].float() for f in self.unlogged if name in f]).mean())
            for name in self.unlogged[-1]
        }
        now = time.perf_counter()
        figures["steps_per_second"] = len(self.unlogged) / (now - self.since)
        self.since, self.unlogged = now, []
        self.log.log(done, figures)
        return f"loss {figures['loss']:.4f}"

    def _describe(self, step: int, loss: float) -> str:
        good = newest_step(self.run)
        return (
            f"The loss of step {step} is {loss}. The newest good checkpoint is "
            f"{good.name if good else 'none'}. Run again with a lower learning rate to go on from "
            "there; the batch is the one that (seed, step) names."
        )

    def _evaluate(self, done: int) -> None:
        figures, pictures = self.trainee.evaluate(done)
        if figures:
            self.log.log(done, figures)
        for name, image in pictures.items():
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            write_png(folder / f"{name}-{done:08d}.png", image)
            self.log.image(done, name, image)
        self.since = time.perf_counter()

    def _save(self, done: int) -> None:
        folder = step_folder(self.run, done)
        if not folder.exists():
            with atomic_path(folder) as partial:
                self.trainee.save(partial)
            prune_steps(self.run, self.settings.keep)
        self.since = time.perf_counter()


def step_seed(seed: int, step: int) -> int:
    """torch's seed for what a step draws (dropout, restarted codes): no state to carry over."""
    return (seed * 1_000_003 + step) % 2**63


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


def pin_settings(run: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings` to run.json of a new run; in an old one, insist that they are the same.

    Raises TrainingError naming what differs: a run resumed otherwise would be neither of the two.
    """
    path, current = run / "run.json", json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, current)
        return
    before = json.loads(path.read_text())
    names = sorted(set(before) | set(current))
    differing = [
        f"{name} was {before.get(name)!r}, is {current.get(name)!r}"
        for name in names
        if before.get(name) != current.get(name)
    ]
    if differing:
        raise TrainingError(
            f"{run} was started with other settings: {'; '.join(differing)}. "
            "Use the same settings to go on, or another --out."
        )


@contextmanager
def evaluating(model: torch.nn.Module, averages: Mapping[str, Tensor]) -> Iterator[None]:
    """The model in eval mode with its averaged weights, put back afterwards."""
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = model.training
    model.load_state_dict(averages)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.load_state_dict(live)
        model.train(training)
