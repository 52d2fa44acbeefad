"""One training step of a prior: GPT on codes, averages, held-out likelihood, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.checkpoint import load_model, load_tensors, save_tensors
from ops.images import image_grid, to_image
from ops.runtime import autocast, pinned
from pipelines.optimization import WeightAverage, make_optimizer, take_step
from pipelines.recipes import PriorRecipe
from pipelines.training import Trainee, evaluating, step_seed
from prior import GPT, Conditions, Prior, save_prior, training_objective
from prior.painter import MODEL_KIND
from tokenizer import VQGAN

CodeBatch = dict[str, Tensor]
SAMPLES = 4  # painted at each evaluation, by the same draws each time


class PriorTrainee(Trainee[CodeBatch]):
    """Trains on {"codes": (B, h, w), "label": (B,)}; samples are decoded with `tokenizer`."""

    def __init__(
        self,
        model: GPT,
        conditions: Conditions,
        tokenizer: VQGAN,
        tokenizer_info: Mapping[str, Any],
        recipe: PriorRecipe,
        *,
        steps: int,
        seed: int,
        held_out: list[CodeBatch],
        device: torch.device,
    ) -> None:
        self.device, self.recipe, self.steps, self.seed = device, recipe, steps, seed
        self.model = model.to(device).train()
        self.conditions, self.tokenizer_info = conditions, dict(tokenizer_info)
        self.tokenizer, self.held_out = tokenizer, held_out
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.average = WeightAverage(self.model, recipe.optimizer.ema_decay)

    def prepare(self, batch: CodeBatch) -> CodeBatch:
        return {name: pinned(tensor, self.device) for name, tensor in batch.items()}

    def train_step(self, batch: CodeBatch, step: int) -> Mapping[str, Tensor]:
        tokens = self.conditions.tokens(batch, len(batch["codes"]))
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        if self.conditions.can_guide:  # guidance needs a prior that also knows no condition
            tokens = self.conditions.drop(tokens, self.recipe.label_dropout, generator)
        config = self.recipe.optimizer
        with autocast(self.device):
            codes = batch["codes"].to(self.device, non_blocking=True)
            objective = training_objective(
                self.model, tokens.to(self.device), codes, self.recipe.loss, generator
            )
        rate = config.rate_at(step, self.steps)
        norm = take_step(self.optimizer, objective.loss, rate, config.max_gradient_norm)
        self.average.update(self.model, step)
        nats = objective.nats.mean()
        return {
            "loss": nats,
            "bits_per_code": nats / math.log(2),
            "gradient_norm": norm,
            "learning_rate": torch.tensor(rate),
        }

    def save(self, folder: Path) -> None:
        save_prior(folder, self.model, self.conditions, self.tokenizer_info)
        save_tensors(folder / "ema.safetensors", self.average.tensors)
        torch.save({"optimizer": self.optimizer.state_dict()}, folder / "train_state.pt")

    def load(self, folder: Path) -> None:
        _, tensors = load_model(folder, MODEL_KIND)
        self.model.load_state_dict(tensors)
        self.average.load(load_tensors(folder / "ema.safetensors"))
        state = torch.load(folder / "train_state.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])

    def evaluate(self, step: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        with evaluating(self.model, self.average.tensors):
            figures = self._held_out_figures()
            prior = Prior(self.model, self.conditions, self.tokenizer_info)
            labels = self._labels() if self.conditions.can_guide else None
            side = self.model.config.window
            codes = prior.paint(side, side, count=SAMPLES, seed=self.seed, labels=labels)
            images = to_image(torch.cat([self.tokenizer.decode(c[None]) for c in codes]))
        return figures, {"samples": image_grid(images, columns=SAMPLES)}

    def _held_out_figures(self) -> dict[str, float]:
        if not self.held_out:
            return {}
        loss = held_out_loss(self.model, self.conditions, self.held_out, self.device)
        return {"held_out_loss": loss}

    def _labels(self) -> list[int]:
        classes = self.conditions.parts[0].vocab_size - 1
        return [i * classes // SAMPLES for i in range(SAMPLES)]


def held_out_loss(
    model: GPT, conditions: Conditions, batches: list[CodeBatch], device: torch.device
) -> float:
    """Mean negative log-likelihood, in nats a code, of the codes of some batches."""
    total, count = 0.0, 0
    for batch in batches:
        tokens = conditions.tokens(batch, len(batch["codes"]))
        loss = model.loss(tokens.to(device), batch["codes"].to(device))
        total += float(loss) * len(tokens)
        count += len(tokens)
    return total / count
