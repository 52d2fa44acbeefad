"""The VQGAN objective (Esser et al. 2021, eq. 5-7): losses of autoencoder and discriminator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from ops.config import ConfigError, Count, Range, Weight, check_fields
from ops.ranks import mean_over_ranks
from tokenizer.discriminator import (
    DISCRIMINATOR_LOSSES,
    DiscriminatorConfig,
    LeCam,
    PatchDiscriminator,
    generator_loss,
    r1_penalty,
)
from tokenizer.label_maps import LABEL_LOSSES
from tokenizer.perceptual import make_perceptual_loss
from tokenizer.vqgan import VQGAN

SMALLEST_NORM = 1e-6  # delta of eq. 7; the published code has 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Terms of the objective and their weights; the defaults are the paper's."""

    reconstruction: str = "pixels"
    """pixels (L1, L2, perceptual); for label maps cross_entropy, or bce as in the paper"""
    l1_weight: Weight = 1.0
    """weight of the mean absolute error"""
    l2_weight: Weight = 0.0
    """weight of the mean squared error"""
    perceptual: str = "lpips"
    """lpips (downloads torchvision's VGG16 once), none, or the path of that file"""
    perceptual_weight: Weight = 1.0
    """weight of the perceptual term"""
    adversarial: str = "hinge"
    """hinge, vanilla, or none for no discriminator"""
    adversarial_weight: Weight = 0.8
    """weight of the adversarial term, times the adaptive weight"""
    adaptive: bool = True
    """balance the adversarial term by gradient norms at the decoder's last layer (eq. 7)"""
    max_adaptive_weight: Weight = 1e4
    """upper bound of that balance, as in the published code; the paper has none"""
    adversarial_start: Annotated[int, Range(least=0)] = 10_000
    """step at which the discriminator starts to train and its loss to count"""
    adversarial_ramp: Count = 1_000
    """steps over which the adversarial weight grows from 0"""
    lecam_weight: Weight = 0.0
    """weight of the LeCAM regulariser, for small data sets: 0.001 to 0.1"""
    r1_weight: Weight = 0.0
    """weight of the R1 gradient penalty at real images; 10 is usual"""
    r1_every: Count = 16
    """steps between two R1 penalties, each weighted by that number"""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.adversarial not in (*DISCRIMINATOR_LOSSES, "none"):
            raise ConfigError(
                f"adversarial must be {', '.join(DISCRIMINATOR_LOSSES)} or none, "
                f"found {self.adversarial!r}."
            )
        if self.reconstruction not in ("pixels", *LABEL_LOSSES):
            raise ConfigError(
                f"reconstruction must be pixels, {' or '.join(LABEL_LOSSES)}, "
                f"found {self.reconstruction!r}."
            )


class Losses(NamedTuple):
    """The autoencoder's result of one training forward."""

    total: Tensor  # scalar to minimise
    metrics: dict[str, Tensor]  # each term, detached
    pixels: Tensor  # (B, C, H, W) the reconstruction, with its graph
    codes: Tensor  # (B, h, w)


class DiscriminatorLosses(NamedTuple):
    """The discriminator's result of one training forward."""

    total: Tensor  # scalar to minimise
    metrics: dict[str, Tensor]  # its terms and mean logits, detached


class VQGANObjective(nn.Module):
    """The losses of both networks; has the discriminator, LeCAM and the perceptual backbone.

    Statistics over a batch are taken over the batches of all processes.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.perceptual = make_perceptual_loss(config.perceptual)
        self.discriminator = (
            None if config.adversarial == "none" else PatchDiscriminator(config.discriminator)
        )
        self.lecam = LeCam()

    def adversarial_strength(self, step: int) -> float:
        """0 before adversarial_start, then rises linearly to 1 over adversarial_ramp steps."""
        if self.discriminator is None or step < self.config.adversarial_start:
            return 0.0
        since = step - self.config.adversarial_start + 1
        return min(1.0, since / self.config.adversarial_ramp)

    def autoencoder_loss(
        self, model: VQGAN, samples: Tensor, step: int, wrapped: nn.Module | None = None
    ) -> Losses:
        """The autoencoder's weighted terms for samples (B, ., H, W) of the model's modality.

        `wrapped`, the model wrapped for training in several processes, is called in its place.
        """
        result = (wrapped or model)(model.modality.pixels(samples))
        terms = self._reconstruction_terms(samples, result.pixels.float())
        reconstruction = sum(terms.values(), result.quantizer_loss.new_zeros(()))
        total = reconstruction + result.quantizer_loss
        metrics = {**terms, "quantizer_loss": result.quantizer_loss}
        strength = self.adversarial_strength(step)
        if strength:
            adversarial, weight = self._adversarial_term(model, result.pixels, reconstruction)
            total = total + strength * weight * adversarial
            metrics |= {"adversarial_loss": adversarial, "adaptive_weight": strength * weight}
        metrics["loss"] = total
        detached = {name: value.detach() for name, value in metrics.items()}
        return Losses(total, detached, result.pixels, result.codes)

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, step: int
    ) -> DiscriminatorLosses | None:
        """The discriminator's losses for pixels (B, C, H, W); None before adversarial_start."""
        if self.discriminator is None or not self.adversarial_strength(step):
            return None
        config = self.config
        logits = self.discriminator(real), self.discriminator(fake.detach())
        total = DISCRIMINATOR_LOSSES[config.adversarial](*logits)
        metrics = {"real_logit": logits[0].mean(), "fake_logit": logits[1].mean()}
        if config.lecam_weight:
            metrics["lecam_loss"] = config.lecam_weight * self.lecam(*logits)
            total = total + metrics["lecam_loss"]
        if config.r1_weight and (step - config.adversarial_start) % config.r1_every == 0:
            metrics["r1_loss"] = config.r1_weight * r1_penalty(self.discriminator, real)
            total = total + config.r1_every * metrics["r1_loss"]
        metrics["discriminator_loss"] = total
        return DiscriminatorLosses(total, {name: value.detach() for name, value in metrics.items()})

    def _reconstruction_terms(self, samples: Tensor, output: Tensor) -> dict[str, Tensor]:
        """Each reconstruction term, weighted."""
        config = self.config
        if config.reconstruction in LABEL_LOSSES:
            return {"reconstruction_loss": LABEL_LOSSES[config.reconstruction](output, samples)}
        error = output - samples
        terms = {"reconstruction_loss": config.l1_weight * error.abs().mean()}
        if config.l2_weight:
            terms["reconstruction_loss"] += config.l2_weight * error.square().mean()
        if self.perceptual is not None:
            distance = self.perceptual(samples, output)
            terms["perceptual_loss"] = config.perceptual_weight * distance
        return terms

    def _adversarial_term(
        self, model: VQGAN, fake: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The adversarial loss of the reconstruction, and its weight."""
        assert self.discriminator is not None
        with _frozen(self.discriminator):
            adversarial = generator_loss(self.discriminator(fake))
        weight = torch.full((), self.config.adversarial_weight, device=fake.device)
        if self.config.adaptive:
            last_layer = model.decoder.conv_out.weight
            balance = adaptive_weight(reconstruction, adversarial, last_layer)
            weight = weight * balance.clamp(max=self.config.max_adaptive_weight)
        return adversarial, weight


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Graphs built inside pass gradients through the module but compute none for its weights."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|gradient of reconstruction| / |gradient of adversarial| at the last layer (eq. 7).

    The losses are those of this process; their gradients are averaged over all processes.
    """
    (r,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (a,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    r, a = mean_over_ranks(r), mean_over_ranks(a)
    weight: Tensor = (r.norm() / (a.norm() + SMALLEST_NORM)).detach()
    return weight
