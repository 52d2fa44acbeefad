"""One training step of a prior: GPT on codes, averages, held-out likelihood, samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ops.checkpoint import load_model, load_tensors, save_tensors
from ops.images import image_grid, to_image
from ops.runtime import autocast, pinned
from ops.sharding import gather_full, parted_like, parted_state
from pipelines.training.loop import Evaluation, TrainTask, step_seed
from pipelines.training.optimizer import WeightAverage, evaluating, make_optimizer, take_step
from pipelines.training.parallel import AS_IS, ParallelConfig, no_sync, shard, wrap_ddp
from pipelines.training.plots import loss_map_picture
from pipelines.training.recipe import PriorRecipe
from prior import (
    MODEL_KIND,
    Conditions,
    LocalConfig,
    LocalGPT,
    LossSettings,
    Objective,
    Prior,
    PriorConfig,
    PriorModel,
    make_model,
    perturbed,
    save_prior,
    training_objective,
)
from tokenizer import VQGAN

CodeBatch = dict[str, Tensor]
SAMPLES = 4  # painted at each evaluation, by the same draws each time


class PriorTask(TrainTask[CodeBatch]):
    """Trains on {"codes": (B, h, w), "label": (B,)}; samples are decoded with `tokenizer`.

    B is this process's share of the recipe's batch: the positions r, r + world, ... of it.
    """

    def __init__(
        self,
        model: PriorModel,
        conditions: Conditions,
        tokenizer: VQGAN,
        tokenizer_info: Mapping[str, Any],
        recipe: PriorRecipe,
        *,
        steps: int,
        seed: int,
        held_out: list[CodeBatch],
        device: torch.device,
        shown: CodeBatch | None = None,
        parallel_config: ParallelConfig = AS_IS,
    ) -> None:
        self.device, self.recipe, self.steps, self.seed = device, recipe, steps, seed
        self.parallel_config = parallel_config
        # Parts of a sharded model go to the device by themselves: as a whole it may not fit.
        self.model = (model if parallel_config.shard else model.to(device)).train()
        self.model.recompute_activations = parallel_config.recompute
        self.conditions, self.tokenizer_info = conditions, dict(tokenizer_info)
        self.tokenizer, self.held_out = tokenizer, held_out
        self.shown = held_out[0] if held_out else shown
        self.objective = self._spread()
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.average = WeightAverage(self.model, recipe.optimizer.ema_decay)

    def _spread(self) -> nn.Module:
        """The objective as a module to call in training, the model in it spread over the ranks."""
        parallel_config = self.parallel_config
        objective = PriorObjective(self.model, self.recipe.loss)
        if parallel_config.compile:
            objective.compile()
        if parallel_config.shard:
            shard(objective, self.model.blocks, parallel_config.ranks, self.device)
            return objective
        return wrap_ddp(objective, parallel_config.ranks, self.device)

    def prepare(self, batch: CodeBatch, step: int) -> CodeBatch:
        """Tokens, codes and what is read of them, drawn by each sample's place in the run."""
        codes = batch["codes"]
        generators = self._generators(step, len(codes))
        share = self.recipe.label_dropout
        tokens = self.conditions.training_tokens(batch, generators, share)
        read = codes
        if self.recipe.loss.pkeep < 1:
            size = self.model.config.codebook_size
            read = torch.stack(
                [
                    perturbed(code, self.recipe.loss.pkeep, size, generator)
                    for code, generator in zip(codes, generators, strict=True)
                ]
            )
        prepared = {"tokens": tokens, "codes": codes, "read": read}
        valid_mask = valid_cells(self.model, batch)
        if valid_mask is not None:
            prepared["valid_mask"] = valid_mask
        return {name: pinned(tensor, self.device) for name, tensor in prepared.items()}

    def _generators(self, step: int, count: int) -> list[torch.Generator]:
        """Randomness for each of this process's samples, whoever else shares the batch."""
        ranks = self.parallel_config.ranks
        first = step * self.recipe.batch_size + ranks.rank
        positions = range(first, first + count * ranks.world, ranks.world)
        return [torch.Generator().manual_seed(step_seed(self.seed, p)) for p in positions]

    def train_step(self, batch: CodeBatch, step: int) -> Mapping[str, Tensor]:
        config = self.recipe.optimizer
        nll: list[Tensor] = []
        rate = config.rate_at(step, self.steps)
        norm = take_step(self.optimizer, self._losses(batch, nll), rate, config.max_gradient_norm)
        self.average.update(self.model, step)
        total, cells = torch.stack(nll).sum(0)
        mean = total / cells.clamp(min=1)
        return {
            "loss": mean,
            "bits_per_code": mean / math.log(2),
            "gradient_norm": norm,
            "learning_rate": torch.tensor(rate),
        }

    def _losses(self, batch: CodeBatch, nll: list[Tensor]) -> Iterator[Tensor]:
        """What each part of the batch adds to the loss; into `nats` go its sum of nats and over
        how many cells, (2,)."""
        moved = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
        count = self.parallel_config.accumulate
        for number in range(count):
            part = {name: tensor.chunk(count)[number] for name, tensor in moved.items()}
            with no_sync(self.objective, held=number < count - 1):
                with autocast(self.device):
                    objective = self.objective(**part)
                nll.append(torch.stack(_sum_and_count(objective.nll, part.get("valid_mask"))))
                yield objective.loss / count

    def amounts(self) -> Mapping[str, int]:
        return {"codes": self.recipe.batch_size * self.recipe.window**2}

    def save(self, folder: Path | None) -> None:
        parts = (self.model.state_dict(), self.average.tensors, self.optimizer.state_dict())
        tensors, averages, optimizer = (
            gather_full(part, keep=folder is not None) for part in parts
        )
        if folder is not None:
            save_prior(folder, self.model, self.conditions, self.tokenizer_info, tensors)
            save_tensors(folder / "ema.safetensors", averages)
            torch.save({"optimizer": optimizer}, folder / "train_state.pt")

    def load(self, folder: Path) -> None:
        _, tensors = load_model(folder, MODEL_KIND)
        live = self.model.state_dict()
        self.model.load_state_dict({n: parted_like(t, live[n]) for n, t in tensors.items()})
        averages = load_tensors(folder / "ema.safetensors")
        self.average.load({n: parted_like(t, live[n]) for n, t in averages.items()})
        state = torch.load(folder / "train_state.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(parted_state(state["optimizer"], self.optimizer))

    def evaluate(self, step: int) -> Evaluation:
        metrics: dict[str, float] = {}
        pictures: dict[str, np.ndarray] = {}
        with self._averaged() as model:
            if self.held_out:
                found = held_out_nll(model, self.conditions, self.held_out, self.device)
                metrics["held_out_loss"] = found.mean
                pictures["loss_map"] = loss_map_picture(found.places.numpy())
            pictures["samples"] = self._samples(model)
        return Evaluation(metrics, pictures, metrics.get("held_out_loss", math.inf))

    @contextmanager
    def _averaged(self) -> Iterator[PriorModel]:
        """The model with its averaged weights, for evaluation."""
        if not self.parallel_config.shard:
            with evaluating(self.model, self.average.tensors):
                yield self.model
            return
        # A whole copy: painting goes token by token, and parts would travel for each. A model that
        # is too large to train on one card can still be looked through on one.
        model = make_model(self.model.config)
        model.load_state_dict(gather_full(self.average.tensors))
        with torch.no_grad():
            yield model.to(self.device).eval()

    def _samples(self, model: PriorModel) -> np.ndarray:
        prior = Prior(model, self.conditions, self.tokenizer_info)
        side = model.config.window
        codes = prior.sample(
            side, side, count=SAMPLES, seed=self.seed, condition_inputs=self._condition_inputs()
        )
        images = to_image(torch.cat([self.tokenizer.decode(c[None]) for c in codes]))
        return image_grid(images, columns=SAMPLES)

    def _condition_inputs(self) -> dict[str, Tensor]:
        """What the samples are told: the classes, spread evenly, or where there is more to tell,
        what is told of the first images."""
        if set(self.conditions.entries) <= {"label"}:
            condition_inputs = [
                part.null_token for part in self.conditions.parts if "label" in part.entries
            ]
            return (
                {"label": torch.arange(SAMPLES) * condition_inputs[0] // SAMPLES}
                if condition_inputs
                else {}
            )
        if self.shown is None:
            return {}
        return self.conditions.examples(self.shown, held_out_generators(0, SAMPLES))


class PriorObjective(nn.Module):
    """What training lowers, as a module: copies are kept in step where a module is called."""

    def __init__(self, model: PriorModel, settings: LossSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(
        self, tokens: Tensor, codes: Tensor, read: Tensor, valid_mask: Tensor | None = None
    ) -> Objective:
        """See training_objective."""
        return training_objective(self.model, tokens, codes, read, self.settings, valid_mask)


def valid_cells(model: PriorModel, batch: CodeBatch) -> Tensor | None:
    """Which of a batch's cells (B, h, w) to learn from and to measure; None for all.

    A prior with windows knows nothing beyond them. One without hears of everything around, so of
    a crop it can be asked only for what the crop does not cut off.
    """
    if not isinstance(model, LocalGPT):
        return None
    edges, (rows, columns) = batch["true_edges"], batch["codes"].shape[1:]
    bottom = torch.ones(len(edges), dtype=torch.bool)
    if model.config.condition_grids:  # of which codes hear from below
        bottom = batch["place"][:, 0] + rows == batch["place"][:, 2]
    edges = torch.cat([edges, bottom[:, None]], dim=1)
    return None if edges.all() else model.uncut(edges, rows, columns)


def held_out_cut(config: PriorConfig) -> float:
    """Where windows are cut from held-out grids that are larger, as CodeDataset takes it.

    In the middle; for a prior that no window suits in a corner, where least is cut off.
    """
    return 0.0 if isinstance(config, LocalConfig) else 0.5


def _sum_and_count(nll: Tensor, valid_mask: Tensor | None, *dims: int) -> tuple[Tensor, Tensor]:
    """Sums of nats (B, h, w) over counted cells, and their numbers; over `dims`, or over all."""
    valid_mask = torch.ones_like(nll) if valid_mask is None else valid_mask.to(nll.dtype)
    return (nll * valid_mask).sum(dims or None), valid_mask.sum(dims or None)


def held_out_generators(first: int, count: int) -> list[torch.Generator]:
    """What draws masks for held-out samples `first` and on: the same at every evaluation."""
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


class HeldOutNLL(NamedTuple):
    """Negative log-likelihood, in nats a code."""

    mean: float
    places: Tensor  # (h, w) the mean at each place of the window; nan where none was measured


def held_out_nll(
    model: PriorModel, conditions: Conditions, batches: list[CodeBatch], device: torch.device
) -> HeldOutNLL:
    """The likelihood of some batches' codes."""
    totals, counts, first = torch.zeros(()), torch.zeros(()), 0
    for batch in batches:
        generators = held_out_generators(first, len(batch["codes"]))
        first += len(generators)
        tokens = conditions.training_tokens(batch, generators, drop_share=0.0)
        nll = model.nll(tokens.to(device), batch["codes"].to(device)).double().cpu()
        total, count = _sum_and_count(nll, valid_cells(model, batch), 0)
        totals, counts = totals + total, counts + count
    return HeldOutNLL(float(totals.sum() / counts.sum()), totals / counts)
