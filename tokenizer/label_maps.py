"""Label maps and depth as a tokenizer's content, and the losses of label maps.

The paper's conditional models speak of segmentations and depth in codes of such tokenizers (Esser
et al. 2021, section 4.1): one-hot labels or one channel in, logits or one channel out, no critic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ops.colours import class_colours, scalar_colours
from ops.config import ConfigError
from ops.grey_images import DEPTH_LEVELS, decode_depth, decode_labels
from ops.images import ImageArray, ImageError, Raster
from ops.metrics import label_agreement
from tokenizer.modalities import MODALITIES, ContinuousModality, Modality, ModalityConfig

VOID = -1  # in samples: no label


@MODALITIES.register("segmentation")
class SegmentationModality(Modality):
    """Label maps: rasters of whole numbers (H, W), samples int64 (B, 1, H, W), VOID where there is
    no label; pixels one-hot (B, num_classes, H, W), all zero at VOID."""

    resampling = shrinking = Image.Resampling.NEAREST  # labels do not mix
    raster_dtype = np.int32
    headline = "accuracy"
    noun = "label maps"

    def __init__(self, config: ModalityConfig) -> None:
        super().__init__(config)
        if config.num_classes < 2:
            raise ConfigError(
                f"A segmentation tokenizer needs at least 2 classes, found {config.num_classes}."
            )
        self.channels = config.num_classes

    def decode(self, data: bytes) -> Raster:
        labels = decode_labels(data)
        valid = labels[labels != self.config.void_label]
        if valid.size and valid.max() >= self.channels:
            raise ImageError(
                "unknown label",
                f"label {valid.max()}, where the highest of {self.channels} classes is "
                f"{self.channels - 1} (and void is {self.config.void_label})",
            )
        return labels

    def samples(self, rasters: Raster) -> Tensor:
        labels = torch.from_numpy(rasters.astype(np.int64)).unsqueeze(1)
        return labels.masked_fill_(labels == self.config.void_label, VOID)

    def pixels(self, samples: Tensor) -> Tensor:
        return one_hot(samples, self.channels)

    def rebuilt(self, output: Tensor) -> Tensor:
        return output.argmax(dim=1, keepdim=True)

    def metrics(self, samples: Tensor, rebuilt: Tensor) -> dict[str, float]:
        agreement = label_agreement(samples, rebuilt, self.channels)
        return {"accuracy": agreement.accuracy, "mean_iou": agreement.mean_iou}

    def errors(self, samples: Tensor, rebuilt: Tensor) -> Tensor:
        return ((samples != rebuilt) & (samples != VOID)).squeeze(1).float()

    def pictures(self, samples: Tensor) -> ImageArray:
        return class_colours(samples.squeeze(1).cpu().numpy())


@MODALITIES.register("depth")
class DepthModality(ContinuousModality):
    """Depth maps: rasters float32 (H, W) from 0 to 65535, samples and pixels (B, 1, H, W) in
    [-1, 1]."""

    channels = 1
    raster_dtype = np.float32
    noun = "depth maps"

    def decode(self, data: bytes) -> Raster:
        return decode_depth(data)

    def samples(self, rasters: Raster) -> Tensor:
        # Resizing overshoots at edges.
        scaled = torch.from_numpy(np.ascontiguousarray(rasters)) / (DEPTH_LEVELS / 2) - 1
        return scaled.clamp_(-1, 1).unsqueeze(1)

    def pictures(self, samples: Tensor) -> ImageArray:
        return scalar_colours((samples.detach().float().squeeze(1).cpu().numpy() + 1) / 2)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float32 (B, num_classes, H, W) of labels (B, 1, H, W), nothing at VOID."""
    shape = (len(labels), num_classes, *labels.shape[2:])
    known = (labels != VOID).float()
    return torch.zeros(shape, device=labels.device).scatter_(1, labels.clamp(min=0), known)


def cross_entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean nats a place of logits (B, K, H, W) at labels (B, 1, H, W); VOID places count as 0.

    They stay in the count, so that the mean of two halves of a batch is that of the whole.
    """
    nll = F.cross_entropy(logits, labels.squeeze(1), ignore_index=VOID, reduction="sum")
    return nll / labels.numel()


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each class's own yes or no, mean over places and classes, as published."""
    targets = one_hot(labels, logits.shape[1])
    nll = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (nll * (labels != VOID)).mean()


#: Name -> function from logits (B, K, H, W) and labels (B, 1, H, W) to a scalar.
LABEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy_loss,
    "bce": binary_loss,
}
