"""Metrics that compare the pixels, or the labels, of originals and reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor

from ops.metrics import PIXEL_RANGE, gradient_energy, mean_absolute_gradient, psnr, ssim
from pipelines.evaluation.measurements import Measurements
from tokenizer import Modality

#: Pixels of the shorter side: windows of 11 in the smallest of five scales.
MS_SSIM_SIDE = 11 * 2**4


class PixelMetrics:
    """PSNR, SSIM and MS-SSIM of each image, and the reconstructions' gradients as a share of the
    originals': below 1 they are blurred, above 1 there is grain."""

    def __init__(self) -> None:
        self._means: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "ms_ssim": []}
        self._energies: list[Tensor] = []  # (B, 2) of reconstructions and originals
        self._gradients: list[Tensor] = []  # (B, 2)

    def update(self, samples: Tensor, rebuilt: Tensor) -> None:
        self._means["psnr"].append(psnr(rebuilt, samples))
        self._means["ssim"].append(ssim(rebuilt, samples))
        if min(samples.shape[2:]) >= MS_SSIM_SIDE:
            self._means["ms_ssim"].append(ms_ssim(rebuilt, samples))
        for measure, found in (
            (gradient_energy, self._energies),
            (mean_absolute_gradient, self._gradients),
        ):
            found.append(torch.stack([measure(rebuilt), measure(samples)], dim=1))

    def add_to(self, measured: Measurements) -> None:
        for name, values in self._means.items():
            if values:
                measured.add_mean(name, torch.cat(values), "dB" if name == "psnr" else "1")
            else:
                measured.lack([name], f"it needs images of {MS_SSIM_SIDE} pixels a side")
        for name, found in (
            ("gradient_energy", self._energies),
            ("absolute_gradient", self._gradients),
        ):
            rebuilt, original = torch.cat(found).double().unbind(1)
            # Each image's share weighted by its original's: the share of all images together.
            kept = original > 0
            shares = rebuilt[kept] / original[kept]
            measured.add_mean(name, shares, "share of the originals'", original[kept])


class LabelMetrics:
    """Pixel accuracy and mean intersection over union of label maps, over all of them."""

    def __init__(self, modality: Modality) -> None:
        self._modality = modality
        self._samples: list[Tensor] = []
        self._rebuilt: list[Tensor] = []

    def update(self, samples: Tensor, rebuilt: Tensor) -> None:
        self._samples.append(samples.int())
        self._rebuilt.append(rebuilt.int())

    def add_to(self, measured: Measurements) -> None:
        pairs = (torch.cat(self._samples), torch.cat(self._rebuilt))
        for name, value in self._modality.metrics(*pairs).items():
            measured.add(name, value, "share", len(pairs[0]))


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale SSIM (Wang et al. 2003) with torchmetrics' five scales, one per image (B,).

    For pixels (B, C, H, W) in [-1, 1], H and W at least MS_SSIM_SIDE.
    """
    # Imported here: it takes as long as all else that a command imports.
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return multiscale_structural_similarity_index_measure(
        a.clamp(-1, 1), b.clamp(-1, 1), data_range=PIXEL_RANGE, reduction="none"
    )
