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
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from ops.config import ConfigError, to_json
from ops.images import ImageError, decode_image, resize_and_crop, to_pixels
from ops.runtime import resolve_device
from pipelines.command_line import run_command
from pipelines.image_crops import ImageCrops
from pipelines.readers import Entry, list_input, read_bytes
from pipelines.recipes import TOKENIZER_RECIPES, TokenizerRecipe
from pipelines.split import held_out
from pipelines.tokenizer_trainee import TokenizerTrainee
from pipelines.training import LoopSettings, pin_settings, train
from tokenizer import build_tokenizer

MOST_HELD_OUT = 64


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags:
    """Train a VQGAN on photographs, and resume where an earlier run stopped."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, photo-f8 or imagenet-f16: see pipelines/recipes.py"""
    data: Path
    """a folder of images, searched with all its sub-folders"""
    out: Path
    """the run folder: checkpoints, metrics.jsonl, TensorBoard events, reconstructions"""
    steps: int | None = None
    """train until this many steps are done (default: the recipe's)"""
    save_every: int | None = None
    """steps between checkpoints"""
    sample_every: int | None = None
    """steps between held-out figures and reconstruction pictures"""
    log_every: int | None = None
    """steps between lines of metrics.jsonl"""
    batch_size: int | None = None
    """crops a step"""
    crop_size: int | None = None
    """pixels a side of a training crop"""
    learning_rate: float | None = None
    """the highest learning rate of the autoencoder"""
    perceptual: str | None = None
    """lpips (fetches torchvision's VGG16 on first use), none, or the path of that file"""
    adversarial_start: int | None = None
    """the step at which the discriminator joins"""
    held_out: float = 0.1
    """share of the images, by key, that measure instead of train"""
    threads: int | None = None
    """CPU threads (default: torch's own choice); losses repeat to the bit at equal threads"""
    seed: int = 0
    """names the order, the crops and the first weights"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


def resolve_recipe(flags: TrainTokenizerFlags) -> TokenizerRecipe:
    """The recipe with the flags that were given laid over it."""
    if flags.recipe not in TOKENIZER_RECIPES:
        raise ConfigError(f"No recipe {flags.recipe!r}; there are {', '.join(TOKENIZER_RECIPES)}.")
    recipe = TOKENIZER_RECIPES[flags.recipe]
    fields = ("steps", "save_every", "sample_every", "log_every", "batch_size", "crop_size")
    given = {name: getattr(flags, name) for name in fields if getattr(flags, name) is not None}
    losses = {
        name: getattr(flags, name)
        for name in ("perceptual", "adversarial_start")
        if getattr(flags, name) is not None
    }
    if losses:
        given["losses"] = dataclasses.replace(recipe.losses, **losses)
    if flags.learning_rate is not None:
        given["optimizer"] = dataclasses.replace(
            recipe.optimizer, learning_rate=flags.learning_rate
        )
    return dataclasses.replace(recipe, **given)


def read_entry(entry: Entry) -> Callable[[], bytes]:
    """A function that reads an image's bytes when they are wanted."""
    return functools.partial(read_bytes, entry.uri, entry.offset, entry.size)


def evaluation_pixels(entries: list[Entry], size: int) -> Tensor:
    """Middle squares (N, 3, size, size) of the images that can be read."""
    images = []
    for entry in entries:
        try:
            image = decode_image(read_entry(entry)())
        except ImageError:
            continue  # a figure is taken on what there is; encode would list it with its reason
        images.append(resize_and_crop(image, size))
    return to_pixels(np.stack(images)) if images else torch.empty(0, 3, size, size)


def run(flags: TrainTokenizerFlags) -> int:
    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    recipe, device = resolve_recipe(flags), resolve_device(flags.device)
    entries = list_input(flags.data).entries
    measured = [entry for entry in entries if held_out(entry.key, flags.held_out)]
    learned = [entry for entry in entries if not held_out(entry.key, flags.held_out)]
    flags.out.mkdir(parents=True, exist_ok=True)
    crops = ImageCrops(
        [(entry.key, read_entry(entry)) for entry in learned],
        batch_size=recipe.batch_size,
        crop_size=recipe.crop_size,
        scale_range=recipe.scale_range,
        seed=flags.seed,
        ledger=flags.out / "bad_images.jsonl",
    )
    torch.manual_seed(flags.seed)  # for the discriminator's first weights
    trainee = TokenizerTrainee(
        build_tokenizer(recipe.preset, flags.seed),
        recipe,
        steps=recipe.steps,
        held_out=evaluation_pixels(measured[:MOST_HELD_OUT], recipe.evaluation_size),
        device=device,
    )
    pin_settings(flags.out, _lasting_settings(flags, recipe))
    settings = LoopSettings(
        steps=recipe.steps,
        save_every=recipe.save_every,
        log_every=recipe.log_every,
        sample_every=recipe.sample_every,
        seed=flags.seed,
    )
    taken = train(trainee, crops, flags.out, settings)
    done = "nothing left to do" if not taken else f"{taken} steps taken"
    print(f"{flags.out}: {done}, {recipe.steps} in all; encode with --tokenizer {flags.out}")
    return 0


def _lasting_settings(flags: TrainTokenizerFlags, recipe: TokenizerRecipe) -> dict[str, Any]:
    """What must not change between the sittings of one run; its length and habits may."""
    recipe_json = to_json(recipe)
    for name in ("steps", "save_every", "sample_every", "log_every"):
        del recipe_json[name]
    return {"recipe": recipe_json, "held_out": flags.held_out, "seed": flags.seed}


def main(argv: list[str] | None = None) -> int:
    return run_command(TrainTokenizerFlags, run, argv, "pipelines.train_tokenizer")


if __name__ == "__main__":
    sys.exit(main())
