"""The study of losses: one network trained as VQ-VAE and with the paper's VQGAN objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.images import ImageArray, to_image
from ops.metrics import gradient_energy
from pipelines.recipes import TOKENIZER_RECIPES
from pipelines.studies.context import IMAGE_SIZE, StudyContext
from pipelines.studies.distances import patch_distance
from pipelines.studies.photographs import held_out_photographs, shown_photographs
from pipelines.studies.study import Column, ImageRow, Study
from pipelines.training import reconstruction_metrics
from tokenizer import load_tokenizer, make_perceptual_loss

RECIPES = {"VQ-VAE": "study-vqvae", "VQGAN": "study-vqgan"}
SHOWN_SIDE = 128  # pixels of the centre that is shown, unscaled


class Losses(Study):
    """The same network, photographs and steps with two objectives."""

    title = "VQ-VAE against VQGAN"
    paper = (
        "The paper (Esser et al. 2021, sections 3.1 and 4.4) replaces the squared error of VQ-VAE "
        "by an absolute and a perceptual error and a patch discriminator with an adaptive weight, "
        "and finds reconstructions sharp where VQ-VAE's are blurred, at some cost in squared "
        "error. Here both train one network for the same steps; the perceptual error is left out "
        "unless --perceptual names its weights, which have to be downloaded. Sharpness is the "
        "gradient energy of held-out reconstructions divided by that of the photographs: 1 is "
        "equally sharp, less is blur, more is added grain. The patch distance is a Fréchet "
        "distance between 32x32 patches in features of photo-f8's encoder: it compares these "
        "variants and is not FID."
    )
    variants = tuple(RECIPES)
    columns = (
        Column("psnr", "PSNR, dB"),
        Column("ssim", "SSIM", 3),
        Column("sharpness", "sharpness"),
        Column("patch_distance", "patch distance", 3),
        Column("lpips", "LPIPS", 3),
        Column("codes_used", "codes used, of 512", 0, plotted=False),
    )

    def settings(self, context: StudyContext) -> dict[str, Any]:
        vqgan = TOKENIZER_RECIPES["study-vqgan"]
        return {
            "tokenizers": list(RECIPES.values()),
            "steps": context.capped(vqgan.steps),
            "batch": f"{vqgan.batch_size} crops of {vqgan.crop_size} pixels",
            "adversarial_start": vqgan.losses.adversarial_start,
            "perceptual": Path(context.perceptual).name,
            "image_size": IMAGE_SIZE,
        }

    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        flags = {} if variant == "VQ-VAE" else {"perceptual": context.perceptual}
        run = context.tokenizer(RECIPES[variant], folder_of(variant, seed), seed, **flags)
        originals = held_out_photographs(context)
        metrics, rebuilt, _ = reconstruction_metrics(
            load_tokenizer(run), originals, torch.device("cpu")
        )
        energies = gradient_energy(rebuilt).sum() / gradient_energy(originals).sum()
        metrics |= {
            "sharpness": float(energies),
            "patch_distance": patch_distance(originals, rebuilt),
        }
        if context.perceptual != "none":
            metrics["lpips"] = perceptual_distance(context.perceptual, originals, rebuilt)
        return metrics

    def images(self, context: StudyContext, seed: int) -> list[ImageRow]:
        originals = shown_photographs(context)
        rows = [ImageRow("photographs", centres(originals))]
        for variant in self.variants:
            tokenizer = load_tokenizer(context.out / folder_of(variant, seed))
            rebuilt = torch.cat([tokenizer.decode(tokenizer.encode(o[None])) for o in originals])
            rows.append(ImageRow(variant, centres(rebuilt)))
        return rows


def folder_of(variant: str, seed: int) -> str:
    """The name of a run's folder."""
    return f"{RECIPES[variant]}-{seed}"


def centres(pixels: Tensor) -> list[ImageArray]:
    """The centres of pixels (N, 3, S, S), as images of SHOWN_SIDE x SHOWN_SIDE."""
    first = (pixels.shape[-1] - SHOWN_SIDE) // 2
    cut = slice(first, first + SHOWN_SIDE)
    return list(to_image(pixels[:, :, cut, cut]))


def perceptual_distance(name: str, originals: Tensor, rebuilt: Tensor) -> float:
    """Mean LPIPS of pixels (N, 3, S, S), with the backbone `name` of make_perceptual_loss."""
    distance = make_perceptual_loss(name)
    assert distance is not None
    pairs = zip(originals.split(1), rebuilt.clamp(-1, 1).split(1), strict=True)
    with torch.no_grad():
        return sum(float(distance(a, b)) for a, b in pairs) / len(originals)
