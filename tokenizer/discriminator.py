"""The PatchGAN discriminator (Isola et al. 2017, section 3.2), its losses and regularisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ops.config import ConfigError, Range, check_fields
from ops.ranks import mean_over_ranks, ranks_here

NORMS = ("batch", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig:
    """Sizes of the PatchGAN discriminator; the defaults are the paper's."""

    image_channels: Annotated[int, Range(least=1, most=2**16)] = 3
    channels: Annotated[int, Range(least=1, most=2**16)] = 64
    num_layers: Annotated[int, Range(least=1, most=16)] = 3
    norm: str = "batch"
    """batch: batch normalisation over all processes; none: no norm, usual with spectral_norm"""
    spectral_norm: bool = False
    """divide each kernel by its largest singular value (Miyato et al. 2018)"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.norm not in NORMS:
            raise ConfigError(f"norm must be one of {', '.join(NORMS)}, found {self.norm!r}.")


class PatchDiscriminator(nn.Module):
    """pixels (B, C, H, W) -> logits (B, 1, h, w), one for each patch: 30 x 30 at 256 x 256."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels
        normed = config.norm == "batch"
        layers: list[nn.Module] = [
            nn.Conv2d(config.image_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for layer in range(1, config.num_layers + 1):
            next_width = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.num_layers else 1
            layers += [
                nn.Conv2d(width, next_width, 4, stride=stride, padding=1, bias=not normed),
                *([BatchNorm(next_width)] if normed else []),
                nn.LeakyReLU(0.2),
            ]
            width = next_width
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)
        if config.spectral_norm:
            for module in self.layers:
                if isinstance(module, nn.Conv2d):
                    spectral_norm(module)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.layers(pixels)
        return logits


class BatchNorm(nn.Module):
    """Batch normalisation of (B, C, H, W) over the samples of all processes, equally many in each.

    torch's SyncBatchNorm works on GPUs only. There are no running statistics, since a discriminator
    is used in training only. It supports double backward, which R1 needs.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if ranks_here().world == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        with torch.autocast(x.device.type, enabled=False):
            # Centred before squaring, so that the variance loses no precision.
            centred = x.float() - self._mean(x.float())
            scale = torch.rsqrt(self._mean(centred.square()) + self.eps)
            normed = centred * scale * self.weight[:, None, None] + self.bias[:, None, None]
        return normed.to(x.dtype)

    @staticmethod
    def _mean(x: Tensor) -> Tensor:
        """The mean of each channel, (C, 1, 1), over all other axes and all processes."""
        return mean_over_ranks(x.mean((0, 2, 3)))[:, None, None]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, BatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def vanilla_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's cross-entropy (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The autoencoder's adversarial loss: the mean logit, negated (for hinge and vanilla)."""
    return -torch.mean(fake_logits)


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1 of Mescheder et al. 2018, eq. 9, at real pixels (B, C, H, W), in float32.

    Half the squared norm of the gradient of an image's mean patch logit, averaged over the images.
    """
    with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
        pixels = real.detach().float().requires_grad_()
        logits = discriminator(pixels).mean((1, 2, 3))
        (gradient,) = torch.autograd.grad(logits.sum(), pixels, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()


class LeCam(nn.Module):
    """LeCAM regulariser (Tseng et al. 2021): keeps logits near running means of the opposite kind.

    Without it a discriminator that has memorised a small data set separates real and fake logits
    without bound. As in the authors' code, only logits beyond those means are penalised.
    """

    real: Tensor
    fake: Tensor
    has_seen: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("has_seen", torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The penalty against the running means; 0 before the first update."""
        beyond_fake = F.relu(real_logits.float() - self.fake).square().mean()
        beyond_real = F.relu(self.real - fake_logits.float()).square().mean()
        return self.has_seen * (beyond_fake + beyond_real)

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Move the running means towards a batch's mean logits; the first batch sets them."""
        share = 1 - self.decay * self.has_seen
        self.real.lerp_(real_mean, share)
        self.fake.lerp_(fake_mean, share)
        self.has_seen.fill_(1)
