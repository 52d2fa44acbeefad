"""A small network with seeded random weights, in place of Inception."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.evaluation.inception import Features

WIDTH, CLASSES = 6, 5


class RandomFeatures(nn.Module):
    """Pooled features (n, WIDTH) and logits (n, CLASSES) of images, uint8 (n, 3, H, W)."""

    name = "random features"

    def __init__(self, seed: int = 0, fail_after: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layer = nn.Conv2d(3, WIDTH, 5, stride=3)
            self.classifier = nn.Linear(WIDTH, CLASSES)
        self.requires_grad_(False)
        self.num_images = 0
        self.fail_after = fail_after  # images, as if the process ended

    def forward(self, images: Tensor) -> Features:
        if self.fail_after is not None and self.num_images >= self.fail_after:
            raise KeyboardInterrupt
        self.num_images += len(images)
        pooled = self.layer(images.float() / 32 - 4).relu().mean((2, 3))
        return Features(pooled, self.classifier(pooled))


class PooledFeatures(nn.Module):
    """The pooled features of RandomFeatures alone, as torchmetrics takes a network."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.network = RandomFeatures()

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.network(images).pooled
        return pooled
