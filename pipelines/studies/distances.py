"""Fréchet distances (Heusel et al. 2017) between sets of images, without downloaded features.

FID's Inception weights would have to be downloaded; here the features are those of the bundled
photo-f8's encoder, or coarse brightness. The values only compare variants within a study.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from tokenizer import load_tokenizer

ENCODER = "photo-f8"
PATCH = 32  # side of a patch, pixels
LAYOUT = 4  # side of the brightness grid, cells
BATCH_SIZE = 64


class PatchFeatures(nn.Module):
    """Patches (N, 3, PATCH, PATCH) in [-1, 1] -> (N, D): the encoder's features before its last
    layer, averaged over the patch."""

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
    """Pixels (B, C, H, W), H and W multiples of PATCH -> (B * H * W / PATCH^2, C, PATCH, PATCH)."""
    channels = pixels.shape[1]
    cut = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, PATCH, PATCH)


def patch_distance(originals: Tensor, others: Tensor) -> float:
    """Distance of the patches of two sets of pixels (B, 3, H, W) in features of photo-f8's encoder:
    compares texture."""
    features = PatchFeatures()
    return _distance(features, (patches_of(p.clamp(-1, 1)) for p in (originals, others)))


def layout_distance(originals: Tensor, others: Tensor) -> float:
    """Distance of coarse brightness grids of two sets of pixels (B, 3, H, W): compares the layout
    of light and dark over the whole image."""
    return _distance(LayoutFeatures(), (p.clamp(-1, 1) for p in (originals, others)))


def _distance(features: nn.Module, sets: Iterable[Tensor]) -> float:
    """Fréchet distance of two sets: 0 if their features have equal mean and covariance."""
    distance = FrechetInceptionDistance(features)
    for real, pixels in zip((True, False), sets, strict=True):
        for part in pixels.split(BATCH_SIZE):
            distance.update(part, real=real)
    return float(distance.compute())
