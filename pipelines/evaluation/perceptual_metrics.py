"""Metrics that compare originals and reconstructions in the features of trained networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ops.images import to_image
from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.feature_files import image_features
from pipelines.evaluation.inception import FeatureNetwork
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.running_statistics import RunningStatistics

LPIPS_NAME, RFID_NAME = "lpips", "rfid"


class LPIPSMetric:
    """LPIPS with VGG16 of each image; `distance` is (a, b) -> scalar, the mean over images."""

    def __init__(self, distance: nn.Module, device: torch.device) -> None:
        self._distance = distance
        self._device = device
        self._values: list[float] = []

    def update(self, samples: Tensor, rebuilt: Tensor) -> None:
        pairs = zip(samples.split(1), rebuilt.clamp(-1, 1).split(1), strict=True)
        with torch.no_grad():
            self._values += [
                float(self._distance(one.to(self._device), other.to(self._device)))
                for one, other in pairs
            ]

    def add_to(self, measured: Measurements) -> None:
        measured.add_mean(LPIPS_NAME, self._values, "1")


class RFIDMetric:
    """FID between the originals and their reconstructions, both rounded to 8 bits."""

    def __init__(self, network: FeatureNetwork, device: torch.device) -> None:
        self._network = network
        self._device = device
        self._originals, self._rebuilt = RunningStatistics(), RunningStatistics()

    def update(self, samples: Tensor, rebuilt: Tensor) -> None:
        for pixels, running in ((samples, self._originals), (rebuilt, self._rebuilt)):
            for features in image_features(self._network, list(to_image(pixels)), self._device):
                running.update(features.pooled.numpy())

    def add_to(self, measured: Measurements) -> None:
        count = self._originals.count
        if count < 2:
            measured.lack([RFID_NAME], f"it needs 2 images, found {count}")
            return
        distance = frechet_distance(self._rebuilt.result(), self._originals.result())
        measured.add(RFID_NAME, distance, "squared distance", count)
