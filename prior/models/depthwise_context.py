"""What is told beside each code, and around it: grids of condition tokens as latents.

All of a grid is told before the first code, so a code may hear of what lies below it and to its
right as well: a code at the top of a sky can know where the sky ends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior.models.layers import INITIAL_STD


class DepthwiseContext(nn.Module):
    """Each cell's latents and those up to `radius` cells around it, weighed channel by channel.

    Beyond the canvas there is nothing: zeros.
    """

    def __init__(self, width: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        side = 2 * radius + 1
        self.weight = nn.Parameter(torch.randn(width, 1, side, side) * INITIAL_STD)
        with torch.no_grad():  # at first each cell hears itself above all
            self.weight[:, :, radius, radius] = 1

    def forward(self, latents: Tensor) -> Tensor:
        """(B, h, w, width) -> the same."""
        return self.inner_rows(F.pad(latents, (0, 0, 0, 0, self.radius, self.radius)))

    def inner_rows(self, latents: Tensor) -> Tensor:
        """(B, radius + h + radius, w, width) -> (B, h, w, width): of rows that have all around."""
        channels = latents.permute(0, 3, 1, 2)
        context = F.conv2d(
            channels, self.weight, padding=(0, self.radius), groups=self.weight.shape[0]
        )
        return context.permute(0, 2, 3, 1)
