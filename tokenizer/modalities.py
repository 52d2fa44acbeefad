"""Modalities: what a tokenizer encodes (images, segmentations, depth), behind one interface.

A file is decoded to a raster (H, W, ...); rasters are resized and cropped to samples (B, ., H, W);
samples become the pixels (B, channels, H, W) that the network reads. The decoder's output becomes
samples again, to be compared. For photographs samples and pixels are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image
from torch import Tensor

from ops.config import ConfigError, Range, Registry, check_fields
from ops.images import ImageArray, Raster, decode_image, to_image, to_pixels
from ops.metrics import psnr, ssim

MODALITIES: Registry[type[Modality]] = Registry("modality")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityConfig:
    """Which modality; the last two fields are used by segmentation only."""

    kind: str = "image"
    """image, segmentation or depth"""
    num_classes: Annotated[int, Range(least=0, most=2**16)] = 0
    """labels are 0 .. num_classes - 1"""
    void_label: Annotated[int, Range(least=-1, most=2**31 - 1)] = 255
    """label of positions that are hidden from the network and left out of losses; -1: none"""

    def __post_init__(self) -> None:
        check_fields(self)


def make_modality(config: ModalityConfig) -> Modality:
    """The modality that a config describes; raises ConfigError for an unknown kind."""
    return MODALITIES[config.kind](config)


class Modality(ABC):
    """The interface. `channels` are those of pixels; `headline` names the main metric."""

    channels: int
    raster_shape: tuple[int, ...] = ()  # of one position of a raster
    raster_dtype: type[np.generic]  # can represent every raster
    resampling = Image.Resampling.BICUBIC
    shrinking = Image.Resampling.LANCZOS
    headline: str
    noun: str

    def __init__(self, config: ModalityConfig) -> None:
        self.config = config

    @abstractmethod
    def decode(self, data: bytes) -> Raster:
        """The upright raster (H, W, ...) in a file's bytes; raises ImageError."""

    @abstractmethod
    def samples(self, rasters: Raster) -> Tensor:
        """Samples (B, ., H, W) from rasters (B, H, W, ...)."""

    def pixels(self, samples: Tensor) -> Tensor:
        """Pixels (B, channels, H, W) from samples (B, ., H, W)."""
        return samples

    def rebuilt(self, output: Tensor) -> Tensor:
        """Samples (B, ., H, W) from a decoder's output (B, channels, H, W)."""
        return output

    @abstractmethod
    def metrics(self, samples: Tensor, rebuilt: Tensor) -> dict[str, float]:
        """Metrics of a reconstruction by name; for each, higher is better."""

    @abstractmethod
    def errors(self, samples: Tensor, rebuilt: Tensor) -> Tensor:
        """The error of each position, (B, H, W), from 0 to 1."""

    @abstractmethod
    def images(self, samples: Tensor) -> ImageArray:
        """Samples as RGB images to look at, uint8 (B, H, W, 3)."""


class ContinuousModality(Modality):
    """Modalities with pixels in [-1, 1], measured by PSNR and SSIM."""

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

    def images(self, samples: Tensor) -> ImageArray:
        return to_image(samples)


def check_channels(config: ModalityConfig, image_channels: int) -> None:
    """Raise ConfigError unless a network has as many channels as its modality."""
    channels = make_modality(config).channels
    if channels != image_channels:
        raise ConfigError(
            f"{config.kind} has {channels} channels, but image_channels is {image_channels}."
        )
