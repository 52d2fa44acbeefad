"""The segmentation and depth modalities, and the losses of label maps.

The paper's conditional models are given segmentations and depth as codes of such tokenizers (Esser
et al. 2021, section 4.1): one-hot labels or one channel in, logits or one channel out, no
discriminator.
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
    """Label maps: integer rasters (H, W), samples int64 (B, 1, H, W) with VOID where there is no
    label, pixels one-hot (B, num_classes, H, W), all zero at VOID."""

    resampling = shrinking = Image.Resampling.NEAREST  # labels must not be interpolated
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
                f"found label {valid.max()}, but the highest of {self.channels} classes is "
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

    def images(self, samples: Tensor) -> ImageArray:
        return class_colours(samples.squeeze(1).cpu().numpy())


@MODALITIES.register("depth")
class DepthModality(ContinuousModality):
    """Depth maps: rasters float32 (H, W) in [0, 65535], samples and pixels (B, 1, H, W) in
    [-1, 1]."""

    channels = 1
    raster_dtype = np.float32
    noun = "depth maps"

    def decode(self, data: bytes) -> Raster:
        return decode_depth(data)

    def samples(self, rasters: Raster) -> Tensor:
        # Bicubic resizing overshoots at edges.
        scaled = torch.from_numpy(np.ascontiguousarray(rasters)) / (DEPTH_LEVELS / 2) - 1
        return scaled.clamp_(-1, 1).unsqueeze(1)

    def images(self, samples: Tensor) -> ImageArray:
        return scalar_colours((samples.detach().float().squeeze(1).cpu().numpy() + 1) / 2)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float32 (B, num_classes, H, W) from labels (B, 1, H, W); all zero at VOID."""
    shape = (len(labels), num_classes, *labels.shape[2:])
    known = (labels != VOID).float()
    return torch.zeros(shape, device=labels.device).scatter_(1, labels.clamp(min=0), known)


def cross_entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (B, K, H, W) for labels (B, 1, H, W).

    VOID positions contribute 0 but are counted, so that the mean over parts of a batch is that of
    the whole batch.
    """
    nll = F.cross_entropy(logits, labels.squeeze(1), ignore_index=VOID, reduction="sum")
    return nll / labels.numel()


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each class, mean over positions and classes, as in CompVis' code.

    Shapes and VOID as in cross_entropy_loss.
    """
    targets = one_hot(labels, logits.shape[1])
    nll = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (nll * (labels != VOID)).mean()


#: Name -> function of logits (B, K, H, W) and labels (B, 1, H, W) to a scalar.
LABEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy_loss,
    "bce": binary_loss,
}
