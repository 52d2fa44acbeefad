"""One training step of a VQGAN: autoencoder and critic, averages, held-out figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ops.checkpoint import load_model, load_tensors, save_tensors
from ops.images import image_grid, to_image
from ops.metrics import code_counts, codebook_usage, psnr, ssim
from ops.runtime import autocast, pinned
from pipelines.optimization import WeightAverage, make_optimizer, take_step
from pipelines.recipes import TokenizerRecipe
from pipelines.training import Trainee, evaluating
from tokenizer import VQGAN, save_tokenizer
from tokenizer.losses import VQGANObjective
from tokenizer.model_folder import KIND

PICTURES = 8  # originals above their reconstructions


class TokenizerTrainee(Trainee[Tensor]):
    """Trains on pixels (B, 3, H, W); `held_out` (N, 3, S, S) is what figures are taken on."""

    def __init__(
        self,
        model: VQGAN,
        recipe: TokenizerRecipe,
        steps: int,
        held_out: Tensor,
        device: torch.device,
    ) -> None:
        self.device, self.recipe, self.steps = device, recipe, steps
        self.model = model.to(device).train()
        if device.type == "cuda":  # slower on CPUs, measured
            self.model = self.model.to(memory_format=torch.channels_last)
        self.objective = VQGANObjective(recipe.losses).to(device).train()
        self.held_out = held_out
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.average = WeightAverage(self.model, recipe.optimizer.ema_decay)
        discriminator = self.objective.discriminator
        self.discriminator_optimizer = (
            make_optimizer(discriminator, recipe.discriminator_optimizer) if discriminator else None
        )

    def prepare(self, batch: Tensor) -> Tensor:
        return pinned(batch, self.device)

    def train_step(self, batch: Tensor, step: int) -> Mapping[str, Tensor]:
        pixels = batch.to(self.device, non_blocking=True)
        config = self.recipe.optimizer
        with autocast(self.device):
            losses = self.objective.autoencoder_loss(self.model, pixels, step)
        rate = config.rate_at(step, self.steps)
        norm = take_step(self.optimizer, losses.total, rate, config.max_gradient_norm)
        self.average.update(self.model, step)
        figures = {**losses.figures, "gradient_norm": norm, "learning_rate": torch.tensor(rate)}
        critic_loss = self._train_discriminator(pixels, losses.pixels, step)
        if critic_loss is not None:
            figures["discriminator_loss"] = critic_loss
        return figures

    def _train_discriminator(self, real: Tensor, fake: Tensor, step: int) -> Tensor | None:
        with autocast(self.device):
            loss = self.objective.discriminator_loss(real, fake, step)
        if loss is None or self.discriminator_optimizer is None:
            return None
        config = self.recipe.discriminator_optimizer
        # The critic's warm-up counts from the step it begins to learn at.
        since = step - self.recipe.losses.adversarial_start
        rate = config.rate_at(since, max(1, self.steps - self.recipe.losses.adversarial_start))
        take_step(self.discriminator_optimizer, loss, rate, config.max_gradient_norm)
        return loss.detach()

    def save(self, folder: Path) -> None:
        save_tokenizer(folder, self.model)
        save_tensors(folder / "ema.safetensors", self.average.tensors)
        state = {"optimizer": self.optimizer.state_dict()}
        if self.discriminator_optimizer is not None:
            assert self.objective.discriminator is not None
            state["discriminator"] = self.objective.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        torch.save(state, folder / "train_state.pt")

    def load(self, folder: Path) -> None:
        _, tensors = load_model(folder, KIND)
        self.model.load_state_dict(tensors)
        self.average.load(load_tensors(folder / "ema.safetensors"))
        state = torch.load(folder / "train_state.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator_optimizer is not None:
            assert self.objective.discriminator is not None
            self.objective.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

    def evaluate(self, step: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        if not len(self.held_out):
            return {}, {}
        with evaluating(self.model, self.average.tensors):
            figures, shown = reconstruction_figures(self.model, self.held_out, self.device)
        pairs = np.concatenate([to_image(self.held_out[:PICTURES]), to_image(shown[:PICTURES])])
        return (
            {f"held_out_{name}": value for name, value in figures.items()},
            {"reconstructions": image_grid(pairs, columns=min(PICTURES, len(self.held_out)))},
        )


@torch.no_grad()
def reconstruction_figures(
    model: VQGAN, pixels: Tensor, device: torch.device
) -> tuple[dict[str, float], Tensor]:
    """PSNR (dB), SSIM and codebook usage over pixels (N, 3, S, S), and the reconstructions."""
    rebuilt, counts = [], torch.zeros(model.config.codebook_size, dtype=torch.int64)
    for part in pixels.split(4):
        codes = model.encode(part.to(device))
        counts += code_counts(codes.cpu(), model.config.codebook_size)
        rebuilt.append(model.decode(codes).float().cpu())
    shown = torch.cat(rebuilt)
    usage = codebook_usage(counts)
    figures = {
        "psnr": float(psnr(shown, pixels).mean()),
        "ssim": float(ssim(shown, pixels).mean()),
        "codes_used": float(usage.used),
        "perplexity": usage.perplexity,
    }
    return figures, shown
