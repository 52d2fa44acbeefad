"""PatchGAN: a critic of overlapping patches (Isola et al. 2017, section 3.2), and its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig:
    """Sizes of the PatchGAN; the defaults are the paper's."""

    image_channels: int = 3
    channels: int = 64
    num_layers: int = 3


class PatchDiscriminator(nn.Module):
    """pixels (B, C, H, W) -> logits (B, 1, h, w), one a patch; 30 x 30 at 256 x 256."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [
            nn.Conv2d(config.image_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for layer in range(1, config.num_layers + 1):
            next_width = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.num_layers else 1
            layers += [
                nn.Conv2d(width, next_width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(next_width),
                nn.LeakyReLU(0.2),
            ]
            width = next_width
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The critic's hinge loss (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def vanilla_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The critic's cross-entropy (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def generator_loss(fake_logits: Tensor) -> Tensor:
    """What the decoder minimises: the critic's mean verdict, negated (both kinds of critic)."""
    return -torch.mean(fake_logits)
