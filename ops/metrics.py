"""Metrics of reconstructions and codebooks: PSNR, SSIM, sharpness, usage, label agreement."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

PIXEL_RANGE = 2.0  # pixels lie in [-1, 1]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one per image (B,), of pixels (B,C,H,W) in [-1, 1].

    Both are clamped to the range first; equal images give infinity.
    """
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(PIXEL_RANGE**2 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, reflected borders), one per image (B,).

    For pixels (B, C, H, W) in [-1, 1], H and W at least 6.
    """
    # Imported here: it takes as long as all else that a command imports.
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(
        a.clamp(-1, 1), b.clamp(-1, 1), data_range=PIXEL_RANGE, reduction="none"
    )
    return values if isinstance(values, Tensor) else values[0]


def gradient_energy(pixels: Tensor) -> Tensor:
    """Mean squared vertical plus horizontal pixel differences, one per image (B,).

    For pixels (B, C, H, W), clamped to [-1, 1] first. Divided by that of the original, it shows
    blur (below 1) or added grain (above 1).
    """
    clamped = pixels.clamp(-1, 1)
    down, across = clamped.diff(dim=-2), clamped.diff(dim=-1)
    return down.square().flatten(1).mean(dim=1) + across.square().flatten(1).mean(dim=1)


def mean_absolute_gradient(pixels: Tensor) -> Tensor:
    """Mean absolute vertical plus horizontal pixel differences, one per image (B,).

    For pixels (B, C, H, W), clamped to [-1, 1] first.
    """
    clamped = pixels.clamp(-1, 1)
    down, across = clamped.diff(dim=-2), clamped.diff(dim=-1)
    return down.abs().flatten(1).mean(dim=1) + across.abs().flatten(1).mean(dim=1)


class Usage(NamedTuple):
    """How much of a codebook some images use."""

    used: int  # codes that occur at all
    perplexity: float  # exp of the entropy: the number of equally frequent codes with that entropy
    bits: float  # entropy, bits a code


def codebook_usage(counts: Tensor) -> Usage:
    """Usage from how often each code occurs: counts (K,)."""
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum()
    return Usage(int((counts > 0).sum()), float(entropy.exp()), float(entropy) / math.log(2))


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs in codes of any shape: (K,) int64."""
    return torch.bincount(codes.flatten(), minlength=codebook_size)


class Agreement(NamedTuple):
    """How well predicted label maps agree with the true ones."""

    accuracy: float  # share of the labelled positions that are right
    mean_iou: float  # intersection over union, mean over the classes that occur in either


def label_agreement(labels: Tensor, predicted: Tensor, num_classes: int) -> Agreement:
    """Agreement of `predicted` with `labels`, of equal shape, values 0 .. num_classes - 1.

    Positions whose true label is negative (void) are left out; NaN if none is left.
    """
    labelled = labels >= 0
    labels, predicted = labels[labelled], predicted[labelled]
    right = code_counts(labels[labels == predicted], num_classes)
    union = code_counts(labels, num_classes) + code_counts(predicted, num_classes) - right
    occurs = union > 0
    iou = right[occurs].double() / union[occurs]
    return Agreement(float((labels == predicted).double().mean()), float(iou.mean()))
