"""What a tokenizer's pixels stand for: one contract for reading, training, figures and pictures.

A file becomes a raster (H, W, ...), rasters are resized and cropped to samples (B, ., H, W), and
samples become the pixels (B, channels, H, W) that a network reads. What the decoder returns becomes
samples again, to compare. For photographs samples and pixels are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from ops.config import ConfigError, Registry
from ops.images import ImageArray, Raster, decode_image, to_image, to_pixels
from ops.metrics import psnr, ssim

MODALITIES: Registry[type[Modality]] = Registry("modality")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityConfig:
    """What is in the files; the last two are read by segmentation alone."""

    kind: str = "image"
    """image, segmentation or depth"""
    num_classes: int = 0
    """labels are 0 .. num_classes - 1"""
    void_label: int = 255
    """places with this label are neither shown to the network nor judged; -1: there are none"""


def make_modality(config: ModalityConfig) -> Modality:
    """The content that a config describes; raises ConfigError where there is none of its kind."""
    return MODALITIES[config.kind](config)


class Modality(ABC):
    """The contract. `channels` are those of pixels; `headline` is the figure that counts most."""

    channels: int
    raster_shape: tuple[int, ...] = ()  # of one place of a raster
    raster_dtype: type[np.generic]  # that holds every raster
    resampling = Image.Resampling.BICUBIC
    shrinking = Image.Resampling.LANCZOS
    headline: str
    noun: str

    def __init__(self, config: ModalityConfig) -> None:
        self.config = config

    @abstractmethod
    def decode(self, data: bytes) -> Raster:
        """The raster in a file's bytes, upright; ImageError where there is none."""

    @abstractmethod
    def samples(self, rasters: Raster) -> Tensor:
        """Samples (B, ., H, W) of B rasters of one size, stacked."""

    def pixels(self, samples: Tensor) -> Tensor:
        """Pixels (B, channels, H, W) of samples."""
        return samples

    def rebuilt(self, output: Tensor) -> Tensor:
        """The samples that a decoder's output (B, channels, H, W) stands for."""
        return output

    @abstractmethod
    def metrics(self, samples: Tensor, rebuilt: Tensor) -> dict[str, float]:
        """How well samples were rebuilt, by name; for each, more is better."""

    @abstractmethod
    def errors(self, samples: Tensor, rebuilt: Tensor) -> Tensor:
        """How wrong each place (B, H, W) is, from 0 to 1."""

    @abstractmethod
    def pictures(self, samples: Tensor) -> ImageArray:
        """Samples as pictures to look at, uint8 (B, H, W, 3)."""


class ContinuousModality(Modality):
    """Pixels in [-1, 1], measured as signals."""

    headline = "psnr"

    def metrics(self, samples: Tensor, rebuilt: Tensor) -> dict[str, float]:
        return {
            "psnr": float(psnr(rebuilt, samples).mean()),
            "ssim": float(ssim(rebuilt, samples).mean()),
        }

    def errors(self, samples: Tensor, rebuilt: Tensor) -> Tensor:
        return (rebuilt.clamp(-1, 1) - samples).abs().mean(1) / 2


@MODALITIES.register("image")
class ImageModality(ContinuousModality):
    """Photographs: rasters uint8 (H, W, 3), samples and pixels (B, 3, H, W) in [-1, 1]."""

    channels = 3
    raster_shape = (3,)
    raster_dtype = np.uint8
    noun = "photographs"

    def decode(self, data: bytes) -> Raster:
        return decode_image(data)

    def samples(self, rasters: Raster) -> Tensor:
        return to_pixels(rasters)

    def pictures(self, samples: Tensor) -> ImageArray:
        return to_image(samples)


def check_channels(config: ModalityConfig, image_channels: int) -> None:
    """Raises ConfigError where a network's channels are not those of its content."""
    channels = make_modality(config).channels
    if channels != image_channels:
        raise ConfigError(
            f"{config.kind} has {channels} channels, but image_channels is {image_channels}."
        )
