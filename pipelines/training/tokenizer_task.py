"""The train task of a VQGAN: autoencoder and discriminator steps, averages, held-out metrics."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.checkpoint import read_description
from ops.colours import scalar_colours
from ops.images import ImageArray, image_grid
from ops.meta_device import on_meta_device
from ops.metrics import code_counts, codebook_usage
from ops.precision import autocast
from ops.ranks import Ranks
from ops.runtime import pinned
from ops.tensor_files import (
    load_state,
    load_weights,
    save_state,
    save_tensors,
    state_errors_explained,
)
from pipelines.training.checkpoint_writer import WriteState, cpu_copies
from pipelines.training.estimate import tokenizer_flop
from pipelines.training.loop import FINITE, Evaluation, TrainTask
from pipelines.training.optimizer import (
    WeightAverage,
    apply_gradients,
    compute_gradients,
    evaluating,
    make_optimizer,
)
from pipelines.training.parallel import SINGLE_PROCESS, ParallelConfig, no_sync, wrap_ddp
from pipelines.training.peak_rate import device_name, peak_share
from pipelines.training.plots import plot_usage
from pipelines.training.recipe import TokenizerRecipe
from tokenizer import KIND, VQGAN, Losses, Modality, VQGANObjective, save_tokenizer

NUM_SHOWN = 8  # originals shown above their reconstructions


class TokenizerTask(TrainTask[Tensor]):
    """Trains on samples (B, C, H, W) of the model's modality; evaluates on `held_out`
    (N, C, S, S).

    B is the process's part of the recipe's batch. Batch statistics, those of the discriminator's
    normalisation and the adaptive weight, are taken over one micro-batch of all processes.
    """

    def __init__(
        self,
        model: VQGAN,
        recipe: TokenizerRecipe,
        steps: int,
        held_out: Tensor,
        device: torch.device,
        parallel_config: ParallelConfig = SINGLE_PROCESS,
    ) -> None:
        self.device, self.recipe, self.steps = device, recipe, steps
        self.parallel_config = parallel_config
        self.model = model.to(device).train()
        if device.type == "cuda":  # slower on CPUs, measured
            self.model = self.model.to(memory_format=torch.channels_last)
        self.objective = VQGANObjective(recipe.losses).to(device).train()
        self.held_out = held_out
        for part in (self.model.encoder, self.model.decoder):
            part.blocks.recompute = parallel_config.recompute
        if parallel_config.compile:  # nearly all of the work; the quantizer would break graphs
            self.model.encoder.compile()
            self.model.decoder.compile()
        self.ddp_model = wrap_ddp(self.model, parallel_config.ranks, device)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.average = WeightAverage(self.model, recipe.optimizer.ema_decay)
        discriminator = self.objective.discriminator
        self.discriminator_optimizer = (
            make_optimizer(discriminator, recipe.discriminator_optimizer) if discriminator else None
        )

    def prepare(self, batch: Tensor, step: int) -> Tensor:
        return pinned(batch, self.device)

    def train_step(self, batch: Tensor, step: int) -> Mapping[str, Tensor]:
        parts = batch.to(self.device, non_blocking=True).chunk(self.parallel_config.accumulate)
        self.model.quantizer.step = step
        self._init_codebook(parts)
        config = self.recipe.optimizer
        rate = config.rate_at(step, self.steps)
        found: list[Losses] = []
        losses, ranks = self._losses(parts, step, found), self.parallel_config.ranks
        found_gradients = compute_gradients(self.optimizer, losses, config.max_gradient_norm, ranks)
        metrics = _means([losses.metrics for losses in found])
        metrics |= {"gradient_norm": found_gradients.norm, "learning_rate": torch.tensor(rate)}
        metrics |= self.model.quantizer.metrics()
        # Both networks' gradients come first: either both take the step, or none.
        rebuilt = [losses.pixels for losses in found]
        finite, more = self._discriminator_gradients(parts, rebuilt, step)
        finite = found_gradients.finite & finite
        apply_gradients(self.optimizer, rate, finite)
        self.average.update(self.model, step, finite)
        self._step_discriminator(more, step, finite)
        return {**metrics, **more, FINITE: finite}

    def forward_state(self) -> list[Tensor]:
        discriminator = self.objective.discriminator
        return [
            *self.model.quantizer.state_dict().values(),
            *(discriminator.buffers() if discriminator else []),
            *self.objective.lecam.buffers(),
        ]

    def _init_codebook(self, parts: tuple[Tensor, ...]) -> None:
        """Initialise the codebook from the whole first batch, not from its first micro-batch."""
        quantizer = self.model.quantizer
        if len(parts) > 1 and quantizer.needs_init:
            with torch.no_grad(), autocast(self.device, self.parallel_config.precision):
                pixels = (self.model.modality.pixels(part) for part in parts)
                latents = [self.model.pre_quant(self.model.encoder(part)) for part in pixels]
            quantizer.prepare(torch.cat(latents).float())

    def _losses(
        self, parts: tuple[Tensor, ...], step: int, found: list[Losses]
    ) -> Iterator[Tensor]:
        """The loss of each micro-batch; appends its terms, detached, to `found`."""
        for number, samples in enumerate(parts, 1):
            with no_sync(self.ddp_model, enabled=number < len(parts)):
                with autocast(self.device, self.parallel_config.precision):
                    losses = self.objective.autoencoder_loss(
                        self.model, samples, step, self.ddp_model
                    )
                found.append(
                    losses._replace(total=losses.total.detach(), pixels=losses.pixels.detach())
                )
                yield losses.total / len(parts)

    def _discriminator_gradients(
        self, real: tuple[Tensor, ...], fake: list[Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradients of the discriminator, from `adversarial_start` on: whether they are finite,
        and its metrics."""
        discriminator, optimizer = self.objective.discriminator, self.discriminator_optimizer
        if optimizer is None or not self.objective.adversarial_strength(step):
            return torch.ones((), dtype=torch.bool, device=self.device), {}
        found: list[Mapping[str, Tensor]] = []

        def losses() -> Iterator[Tensor]:
            for pixels, rebuilt in zip(real, fake, strict=True):
                with autocast(self.device, self.parallel_config.precision):
                    loss = self.objective.discriminator_loss(pixels, rebuilt, step)
                assert loss is not None
                found.append(loss.metrics)
                yield loss.total / len(real)
            assert discriminator is not None
            self.parallel_config.ranks.average_gradients(discriminator)

        gradients = compute_gradients(
            optimizer,
            losses(),
            self.recipe.discriminator_optimizer.max_gradient_norm,
            self.parallel_config.ranks,
        )
        return gradients.finite, {**_means(found), "discriminator_gradient_norm": gradients.norm}

    def _step_discriminator(self, metrics: Mapping[str, Tensor], step: int, finite: Tensor) -> None:
        """Take the step whose gradients are there, where `finite`; `metrics` are those of them."""
        if self.discriminator_optimizer is None or not metrics:
            return
        config, start = self.recipe.discriminator_optimizer, self.recipe.losses.adversarial_start
        # Its warm-up counts from its own first step.
        rate = config.rate_at(step - start, max(1, self.steps - start))
        apply_gradients(self.discriminator_optimizer, rate, finite)
        names = ("real_logit", "fake_logit")
        logits = (self.parallel_config.ranks.mean(metrics[name]) for name in names)
        self.objective.lecam.update(*logits)

    def amounts(self) -> Mapping[str, int]:
        return {"images": self.recipe.batch_size}

    def peak_share(self, steps_per_second: float) -> float | None:
        world = self.parallel_config.ranks.world
        return peak_share(lambda: self._flop, steps_per_second, self.device, world)

    @functools.cached_property
    def _flop(self) -> int:
        return self.recipe.batch_size * tokenizer_flop(self.model.config, self.recipe.crop_size)

    def description(self) -> Mapping[str, str]:
        precision = self.parallel_config.precision
        return {"device": device_name(self.device), "precision": precision}

    def snapshot(self) -> WriteState:
        if not self.parallel_config.ranks.is_first:
            return lambda folder, ranks: None
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.discriminator_optimizer is not None:
            assert self.objective.discriminator is not None
            state["discriminator"] = self.objective.discriminator.state_dict()
            state["lecam"] = self.objective.lecam.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        weights, averages, state = cpu_copies(
            (dict(self.model.state_dict()), self.average.tensors, state)
        )

        def write(folder: Path, ranks: Ranks) -> None:
            save_tokenizer(folder, self.model, tensors=weights)
            save_tensors(folder / "ema.safetensors", averages)
            save_state(folder / "train_state.pt", state)

        return write

    def load(self, folder: Path) -> None:
        read_description(folder, KIND)
        with on_meta_device():
            outline = VQGAN(self.model.config)
        self.model.load_state_dict(load_weights(folder / "model.safetensors", outline))
        self.average.load(load_weights(folder / "ema.safetensors", outline))
        state = load_state(folder / "train_state.pt", self.device)
        with state_errors_explained(folder / "train_state.pt"):
            self.optimizer.load_state_dict(state["optimizer"])
            if self.discriminator_optimizer is not None:
                assert self.objective.discriminator is not None
                self.objective.discriminator.load_state_dict(state["discriminator"])
                self.objective.lecam.load_state_dict(state["lecam"])
                self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

    def evaluate(self, step: int) -> Evaluation:
        if not len(self.held_out):
            return Evaluation({}, {})
        with evaluating(self.model, self.average.tensors):
            metrics, rebuilt, counts = reconstruction_metrics(
                self.model, self.held_out, self.device
            )
        return Evaluation(
            {f"held_out_{name}": value for name, value in metrics.items()},
            {
                **reconstruction_images(self.model.modality, self.held_out, rebuilt),
                "code_usage": plot_usage(counts.numpy()),
            },
            loss=-metrics[self.model.modality.headline],
        )


def reconstruction_images(
    modality: Modality, samples: Tensor, rebuilt: Tensor, most: int = NUM_SHOWN
) -> dict[str, ImageArray]:
    """Images by name: originals above their reconstructions, and the errors of each pixel.

    The brightest error is a quarter of the value range or more, or another label.
    """
    samples, rebuilt = samples[:most], rebuilt[:most]
    pairs = np.concatenate([modality.images(samples), modality.images(rebuilt)])
    errors = scalar_colours(4 * modality.errors(samples, rebuilt).numpy())
    return {
        "reconstructions": image_grid(pairs, columns=len(samples)),
        "errors": image_grid(errors, columns=len(samples)),
    }


def _means(metrics: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each metric over the micro-batches."""
    return {name: torch.stack([part[name] for part in metrics]).mean() for name in metrics[0]}


@torch.no_grad()
def reconstruction_metrics(
    model: VQGAN, samples: Tensor, device: torch.device
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Encode and decode `samples` (N, C, S, S).

    Returns the modality's metrics and codebook usage, the reconstructions (N, C, S, S), and how
    often each code occurred (K,).
    """
    decoded, counts = [], torch.zeros(model.config.codebook_size, dtype=torch.int64)
    for part in torch.split(samples, 4):
        codes = model.encode(model.modality.pixels(part.to(device)))
        counts += code_counts(codes.cpu(), model.config.codebook_size)
        decoded.append(model.modality.rebuilt(model.decode(codes).float()).cpu())
    rebuilt = torch.cat(decoded)
    usage = codebook_usage(counts)
    metrics = {
        **model.modality.metrics(samples, rebuilt),
        "codes_used": float(usage.used),
        "perplexity": usage.perplexity,
    }
    return metrics, rebuilt, counts
