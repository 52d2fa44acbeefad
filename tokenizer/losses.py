"""The VQGAN objective (Esser et al. 2021, eq. 5-7): what autoencoder and critic minimise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ops.config import ConfigError
from tokenizer.discriminator import (
    DISCRIMINATOR_LOSSES,
    DiscriminatorConfig,
    PatchDiscriminator,
    generator_loss,
)
from tokenizer.perceptual import make_perceptual_loss
from tokenizer.vqgan import VQGAN

MAX_ADAPTIVE_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Terms of the objective and their weights; the defaults are the paper's."""

    l1_weight: float = 1.0
    """weight of the mean absolute error"""
    l2_weight: float = 0.0
    """weight of the mean squared error"""
    perceptual: str = "lpips"
    """lpips (fetches torchvision's VGG16 once), none, or the path of that file"""
    perceptual_weight: float = 1.0
    """weight of the perceptual term"""
    adversarial: str = "hinge"
    """hinge, vanilla, or none for no discriminator at all"""
    adversarial_weight: float = 0.8
    """weight of the adversarial term, times the adaptive weight"""
    adaptive: bool = True
    """balance the adversarial term by gradients at the decoder's last layer"""
    adversarial_start: int = 10_000
    """the step at which the discriminator begins to learn and to be heard"""
    adversarial_ramp: int = 1_000
    """steps over which its weight grows from nothing"""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        if self.adversarial not in (*DISCRIMINATOR_LOSSES, "none"):
            raise ConfigError(
                f"adversarial must be {', '.join(DISCRIMINATOR_LOSSES)} or none, "
                f"found {self.adversarial!r}."
            )


class Losses(NamedTuple):
    """One training forward's result."""

    total: Tensor  # scalar to minimise
    figures: dict[str, Tensor]  # each term, detached
    pixels: Tensor  # (B, 3, H, W) the reconstruction, with its graph
    codes: Tensor  # (B, h, w)


class VQGANObjective(nn.Module):
    """Holds the discriminator and the perceptual backbone; stateless otherwise."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.perceptual = make_perceptual_loss(config.perceptual)
        self.discriminator = (
            None if config.adversarial == "none" else PatchDiscriminator(config.discriminator)
        )

    def adversarial_strength(self, step: int) -> float:
        """0 before adversarial_start, then a line up to 1 over adversarial_ramp steps."""
        if self.discriminator is None or step < self.config.adversarial_start:
            return 0.0
        since = step - self.config.adversarial_start + 1
        return min(1.0, since / max(1, self.config.adversarial_ramp))

    def autoencoder_loss(
        self, model: VQGAN, pixels: Tensor, step: int, spread: nn.Module | None = None
    ) -> Losses:
        """The autoencoder's side for pixels (B, 3, H, W): all terms, weighted.

        `spread` is called in place of the model it wraps, where several processes train.
        """
        result = (spread or model)(pixels)
        terms = self._reconstruction_terms(pixels, result.pixels.float())
        reconstruction = sum(terms.values(), pixels.new_zeros(()))
        total = reconstruction + result.quantizer_loss
        figures = {**terms, "quantizer_loss": result.quantizer_loss}
        strength = self.adversarial_strength(step)
        if strength:
            adversarial, weight = self._adversarial_term(model, result.pixels, reconstruction)
            total = total + strength * weight * adversarial
            figures |= {"adversarial_loss": adversarial, "adaptive_weight": strength * weight}
        figures["loss"] = total
        detached = {name: value.detach() for name, value in figures.items()}
        return Losses(total, detached, result.pixels, result.codes)

    def discriminator_loss(self, real: Tensor, fake: Tensor, step: int) -> Tensor | None:
        """The critic's side for pixels (B, 3, H, W); None while it does not learn yet."""
        if self.discriminator is None or not self.adversarial_strength(step):
            return None
        loss = DISCRIMINATOR_LOSSES[self.config.adversarial]
        return loss(self.discriminator(real), self.discriminator(fake.detach()))

    def _reconstruction_terms(self, pixels: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Each reconstruction term, weighted."""
        config, error = self.config, reconstruction - pixels
        terms = {"reconstruction_loss": config.l1_weight * error.abs().mean()}
        if config.l2_weight:
            terms["reconstruction_loss"] += config.l2_weight * error.square().mean()
        if self.perceptual is not None:
            distance = self.perceptual(pixels, reconstruction)
            terms["perceptual_loss"] = config.perceptual_weight * distance
        return terms

    def _adversarial_term(
        self, model: VQGAN, fake: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The critic's verdict on the reconstruction and the weight it is heard with."""
        assert self.discriminator is not None
        adversarial = generator_loss(self.discriminator(fake))
        weight = torch.tensor(self.config.adversarial_weight, device=fake.device)
        if self.config.adaptive:
            last_layer = model.decoder.conv_out.weight
            weight = weight * adaptive_weight(reconstruction, adversarial, last_layer)
        return adversarial, weight


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|grad of reconstruction| / |grad of adversarial| at the last layer (eq. 7), at most 1e4."""
    (r,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (a,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (r.norm() / (a.norm() + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
