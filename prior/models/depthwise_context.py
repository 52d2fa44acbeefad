"""Depthwise convolution over grid conditions: mixes their embeddings at and around each cell.

A grid condition is known as a whole before the first code is sampled, so the convolution is not
causal: a code may depend on the grid below it and to its right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior.models.layers import INITIAL_STD


class DepthwiseContext(nn.Module):
    """Depthwise convolution of side 2 * radius + 1, zero-padded, initialized near the identity."""

    def __init__(self, width: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        side = 2 * radius + 1
        self.weight = nn.Parameter(torch.randn(width, 1, side, side) * INITIAL_STD)
        with torch.no_grad():
            self.weight[:, :, radius, radius] = 1

    def forward(self, latents: Tensor) -> Tensor:
        """(B, h, w, width) -> (B, h, w, width)"""
        return self.inner_rows(F.pad(latents, (0, 0, 0, 0, self.radius, self.radius)))

    def inner_rows(self, latents: Tensor) -> Tensor:
        """(B, radius + h + radius, w, width) -> (B, h, w, width): the rows with all neighbours."""
        channels = latents.permute(0, 3, 1, 2)
        context = F.conv2d(
            channels, self.weight, padding=(0, self.radius), groups=self.weight.shape[0]
        )
        return context.permute(0, 2, 3, 1)
