#!/usr/bin/env python
"""Train a VQGAN on a folder of images: python -m pipelines.train_tokenizer RECIPE --data --out.

Run again, it goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from ops.config import ConfigError
from ops.images import ImageError, decode_image, resize_and_crop, to_pixels
from ops.runtime import resolve_device
from pipelines.command_line import run_command
from pipelines.image_crops import ImageCrops
from pipelines.ledger import Ledger
from pipelines.readers import Entry, list_input, read_bytes
from pipelines.recipes import TOKENIZER_RECIPES, TokenizerRecipe
from pipelines.split import held_out
from pipelines.tokenizer_trainee import TokenizerTrainee
from pipelines.training import pin_settings, train
from pipelines.training_flags import (
    TrainingFlags,
    lasting_settings,
    lay_over,
    loop_settings,
    outcome,
    use_threads,
)
from tokenizer import PRESETS, build_tokenizer

MOST_HELD_OUT = 64


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags(TrainingFlags):
    """Train a VQGAN on photographs, and resume where an earlier run stopped."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, photo-f8 or imagenet-f16: see pipelines/recipes.py"""
    data: Path
    """a folder of images, searched with all its sub-folders"""
    crop_size: int | None = None
    """pixels a side of a training crop"""
    perceptual: str | None = None
    """lpips (fetches torchvision's VGG16 on first use), none, or the path of that file"""
    adversarial_start: int | None = None
    """the step at which the discriminator joins"""
    held_out: float = 0.1
    """share of the images, by key, that measure instead of train"""


def resolve_recipe(flags: TrainTokenizerFlags) -> TokenizerRecipe:
    """The recipe with the flags that were given laid over it."""
    recipe = lay_over(TOKENIZER_RECIPES, flags.recipe, flags, "crop_size")
    given = {
        name: getattr(flags, name)
        for name in ("perceptual", "adversarial_start")
        if getattr(flags, name) is not None
    }
    recipe = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, **given))
    factor = PRESETS[recipe.preset].downsample_factor
    if recipe.crop_size % factor:
        raise ConfigError(f"--crop-size {recipe.crop_size} is not a multiple of {factor}.")
    return recipe


def read_entry(entry: Entry) -> Callable[[], bytes]:
    """A function that reads an image's bytes when they are wanted."""
    return functools.partial(read_bytes, entry.uri, entry.offset, entry.size)


def evaluation_pixels(
    entries: list[Entry], size: int, on_bad: Callable[[str, str], None]
) -> Tensor:
    """Middle squares (N, 3, size, size) of the images; on_bad(key, reason) for the unreadable."""
    images = []
    for entry in entries:
        try:
            image = decode_image(read_entry(entry)())
        except ImageError as error:
            on_bad(entry.key, str(error))
            continue
        images.append(resize_and_crop(image, size))
    return to_pixels(np.stack(images)) if images else torch.empty(0, 3, size, size)


def run(flags: TrainTokenizerFlags) -> int:
    use_threads(flags.threads)
    recipe, device = resolve_recipe(flags), resolve_device(flags.device)
    entries = list_input(flags.data).entries
    measured = [entry for entry in entries if held_out(entry.key, flags.held_out)]
    learned = [entry for entry in entries if not held_out(entry.key, flags.held_out)]
    flags.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(flags.out / "bad_images.jsonl")
    crops = ImageCrops(
        [(entry.key, read_entry(entry)) for entry in learned],
        batch_size=recipe.batch_size,
        crop_size=recipe.crop_size,
        scale_range=recipe.scale_range,
        seed=flags.seed,
        ledger=ledger,
    )
    torch.manual_seed(flags.seed)  # for the discriminator's first weights
    trainee = TokenizerTrainee(
        build_tokenizer(recipe.preset, flags.seed),
        recipe,
        steps=recipe.steps,
        held_out=evaluation_pixels(measured[:MOST_HELD_OUT], recipe.evaluation_size, ledger.add),
        device=device,
    )
    pin_settings(flags.out, lasting_settings(recipe, held_out=flags.held_out, seed=flags.seed))
    taken = train(trainee, crops, flags.out, loop_settings(recipe, flags.seed))
    encode = f"encode with python -m pipelines.encode --tokenizer {flags.out}"
    print(outcome(flags.out, taken, recipe.steps, encode))
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(TrainTokenizerFlags, run, argv, "pipelines.train_tokenizer")


if __name__ == "__main__":
    sys.exit(main())
