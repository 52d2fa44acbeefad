"""The study of downsampling factors: f = 4, 8 and 16 with the same prior."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.studies.context import IMAGE_SIZE, StudyContext, prior_batch
from pipelines.studies.distances import layout_distance, patch_distance
from pipelines.studies.photographs import held_out_photographs, training_photographs
from pipelines.studies.samples import sample_row
from pipelines.studies.study import Column, ImageRow, Study
from prior import load_prior
from tokenizer import load_tokenizer

FACTORS = {"f4": 4, "f8": 8, "f16": 16}
PRIOR = "study"
WINDOW = PRIOR_RECIPES[PRIOR].window
TOKENIZER_SEED = 0  # the study's seeds are the priors'; each f has one tokenizer
NUM_SAMPLES = 40  # measured for each prior


class Downsampling(Study):
    """Three tokenizers of one design, with priors of one size on windows of 16x16 codes."""

    title = "f = 4, 8 and 16 with a fixed prior of 16x16 codes"
    paper = (
        "The paper (Esser et al. 2021, section 4.3) keeps the transformer's sequence at 16x16 "
        "codes and varies how many pixels a code stands for. With larger f the prior sees more of "
        "the image and samples become coherent, until reconstructions lose too much; sampling is "
        "3.86, 65.81 and 280.68 times as fast as over pixels at f = 2, 8 and 16. Here every f has "
        "a tokenizer of one design, trained for the same steps on the same pixels, and priors of "
        "one size. Nats a code and a pixel are the rate, PSNR and SSIM the quality: no column "
        "decides alone. The distances are Fréchet distances of samples of 256x256 pixels to "
        "photographs; they compare these variants and are not FID: patch distance is between "
        "32x32 patches, in features of photo-f8's encoder, to the held-out photographs; layout "
        "distance is between 4x4 grids of brightness, to the photographs trained on."
    )
    variants = tuple(FACTORS)
    columns = (
        Column("context", "window, pixels a side", 0, plotted=False),
        Column("nats_per_code", "nats a code, held out", 3),
        Column("nats_per_pixel", "nats a pixel, held out", 4),
        Column("psnr", "PSNR, dB"),
        Column("ssim", "SSIM", 3),
        Column("codes_used", "codes used, of 512", 0, plotted=False),
        Column("patch_distance", "samples: patch distance", 3),
        Column("layout_distance", "samples: layout distance", 4),
        Column("pixels_per_second", "pixels sampled a second, times f4's", 1, relative=True),
    )

    def settings(self, context: StudyContext) -> dict[str, Any]:
        recipe = TOKENIZER_RECIPES["study-f8"]
        return {
            "tokenizers": [f"study-{variant}" for variant in self.variants],
            "tokenizer_steps": context.capped(recipe.steps),
            "tokenizer_batch": f"{recipe.batch_size} crops of {recipe.crop_size} pixels",
            "prior": PRIOR,
            "prior_steps": context.capped(PRIOR_RECIPES[PRIOR].steps),
            "prior_batch": prior_batch(PRIOR),
            "image_size": IMAGE_SIZE,
            "samples": NUM_SAMPLES,
        }

    def prepare(self, context: StudyContext) -> None:
        for variant in self.variants:
            tokenizer = context.tokenizer(
                f"study-{variant}", f"tokenizer-{variant}", seed=TOKENIZER_SEED
            )
            context.codes(tokenizer, f"codes-{variant}.zarr")

    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        codes = context.out / f"codes-{variant}.zarr"
        trained = context.prior(PRIOR, codes, variant, seed)
        nll, factor = context.nll(trained, codes), FACTORS[variant]
        quality = context.quality(context.out / f"tokenizer-{variant}")
        pixels = sample_pixels(trained, IMAGE_SIZE // factor, seed)
        return {
            "context": float(WINDOW * factor),
            "nats_per_code": nll,
            "nats_per_pixel": nll / factor**2,
            **{name: quality[name] for name in ("psnr", "ssim", "codes_used")},
            "patch_distance": patch_distance(held_out_photographs(context), pixels),
            "layout_distance": layout_distance(training_photographs(context), pixels),
            "pixels_per_second": sampling_speed(trained, IMAGE_SIZE, factor),
        }

    def images(self, context: StudyContext, seed: int) -> list[ImageRow]:
        """Samples of one window of codes for each f."""
        return [
            sample_row(f"{variant}, {WINDOW * factor} pixels", context.prior_folder(variant, seed))
            for variant, factor in FACTORS.items()
        ]


def sample_pixels(folder: Path, side: int, seed: int) -> Tensor:
    """Samples (N, 3, H, W) of side x side codes, drawn without top-k or top-p."""
    prior, tokenizer = load_prior(folder), load_tokenizer(folder / "tokenizer")
    codes = prior.sample(side, side, count=NUM_SAMPLES, seed=seed)
    return torch.cat([tokenizer.decode(each[None]) for each in codes])


def sampling_speed(folder: Path, size: int, factor: int) -> float:
    """Pixels a second at which one image of size x size pixels is sampled and decoded.

    The best of three, since other load on the machine only adds time.
    """
    prior, tokenizer = load_prior(folder), load_tokenizer(folder / "tokenizer")
    side, seconds = size // factor, []
    for _ in range(3):
        started = time.perf_counter()
        tokenizer.decode(prior.sample(side, side, count=1))
        seconds.append(time.perf_counter() - started)
    return size**2 / min(seconds)
