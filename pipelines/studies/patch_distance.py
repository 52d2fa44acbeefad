"""A Fréchet distance between patches, in features that come with the package.

Inception's weights would have to be fetched; the encoder of photo-f8, trained on photographs, is
here. Its figures are its own: they compare the variants of a study, and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from tokenizer import load_tokenizer

ENCODER = "photo-f8"
PATCH = 32  # pixels a side
PATCHES_AT_ONCE = 64


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
        return self.encoder(patches).mean(dim=(2, 3))


def patches_of(pixels: Tensor) -> Tensor:
    """Pixels (B, C, H, W), H and W multiples of PATCH, cut up: (B * H * W / PATCH^2, C, PATCH,
    PATCH); clamped to [-1, 1]."""
    channels = pixels.shape[1]
    cut = pixels.clamp(-1, 1).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, PATCH, PATCH)


def patch_distance(originals: Tensor, rebuilt: Tensor) -> float:
    """Fréchet distance (Heusel et al. 2017) between the patches of two sets of pixels
    (B, 3, H, W): 0 where both have the same statistics."""
    features = PatchFeatures()
    distance = FrechetInceptionDistance(features)
    for pixels, real in ((originals, True), (rebuilt, False)):
        for patches in patches_of(pixels).split(PATCHES_AT_ONCE):
            distance.update(patches, real=real)
    return float(distance.compute())
