"""Fréchet distances (Heusel et al. 2017) between sets of pictures, in features that are at hand.

Inception's weights would have to be fetched; the encoder of photo-f8, trained on photographs, is
here. The figures are their own: they compare the variants of a study, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from tokenizer import load_tokenizer

ENCODER = "photo-f8"
PATCH = 32  # pixels a side
LAYOUT = 4  # cells a side
AT_ONCE = 64


class PatchFeatures(nn.Module):
    """Patches (N, 3, PATCH, PATCH) in [-1, 1] -> (N, D): what the encoder has before its last
    layer, the mean over the patch."""

    def __init__(self) -> None:
        super().__init__()
        tokenizer = load_tokenizer(ENCODER)
        self.encoder = tokenizer.encoder
        self.encoder.add_module("conv_out", nn.Identity())
        autoencoder = tokenizer.config.autoencoder
        self.num_features = autoencoder.channels * autoencoder.channel_mult[-1]

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        features: Tensor = self.encoder(patches).mean(dim=(2, 3))
        return features


class LayoutFeatures(nn.Module):
    """Pixels (N, 3, H, W) -> (N, LAYOUT^2): the mean brightness of each cell of a coarse grid."""

    num_features = LAYOUT**2

    def forward(self, pixels: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), LAYOUT).flatten(1)


def patches_of(pixels: Tensor) -> Tensor:
    """Pixels (B, C, H, W), H and W multiples of PATCH, cut up: (B * H * W / PATCH^2, C, PATCH,
    PATCH)."""
    channels = pixels.shape[1]
    cut = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, PATCH, PATCH)


def patch_distance(originals: Tensor, others: Tensor) -> float:
    """Between the patches of two sets of pixels (B, 3, H, W), in the features of photo-f8's
    encoder: are texture and grain alike?"""
    features = PatchFeatures()
    return _distance(features, (patches_of(p.clamp(-1, 1)) for p in (originals, others)))


def layout_distance(originals: Tensor, others: Tensor) -> float:
    """Between coarse grids of brightness of two sets of pixels (B, 3, H, W): are light and dark
    laid out alike over the whole picture?"""
    return _distance(LayoutFeatures(), (p.clamp(-1, 1) for p in (originals, others)))


def _distance(features: nn.Module, both: Iterable[Tensor]) -> float:
    """0 where both have the same mean and covariance."""
    distance = FrechetInceptionDistance(features)
    for real, pixels in zip((True, False), both, strict=True):
        for part in pixels.split(AT_ONCE):
            distance.update(part, real=real)
    return float(distance.compute())
