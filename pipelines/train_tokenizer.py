#!/usr/bin/env python3
"""Train a VQGAN: python -m pipelines.train_tokenizer RECIPE --data --out.

On images, label maps or depth maps. Run again, it goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro

from ops.config import ConfigError, UserError
from ops.ranks import Ranks
from ops.runtime import keep_freed_memory, resolve_device
from pipelines.console import run_command
from pipelines.inputs import Ledger, read_entry
from pipelines.jobs import check_absolute
from pipelines.recipes import TOKENIZER_RECIPES
from pipelines.training import (
    ImageCrops,
    OnStep,
    Source,
    TokenizerData,
    TokenizerRecipe,
    TokenizerTask,
    TrainingFlags,
    division_of,
    evaluation_samples,
    in_groups,
    lasting_settings,
    list_data,
    loop_settings,
    outcome,
    override_recipe,
    parallel_config_of,
    pin_settings,
    run_attempts,
    tokenizer_lines,
    train,
    use_threads,
    with_classes,
    worker_config_of,
)
from tokenizer import PRESETS, ModalityConfig, build_tokenizer, make_modality

MOST_HELD_OUT = 64
BAD_IMAGES = "bad_images.jsonl"
LOSS_FLAGS = (
    "perceptual", "adversarial", "adversarial_start", "adversarial_ramp", "adversarial_weight",
    "lecam_weight", "r1_weight",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags(TrainingFlags):
    """Train a VQGAN on photographs, label maps or depth maps; run again, it goes on."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-segmentation, tiny-depth, photo-f8 or another of pipelines/recipes.py"""
    data: Path
    """a folder of images, tar files (WebDataset) or Parquet tables, searched with all its
    sub-folders; or one such file"""
    targets: Path | None = None
    """a folder of label maps or depth maps that have the names of --data's images, to train on in
    their place; what is held out stays the same"""
    num_classes: int | None = None
    """of label maps: labels are 0 to one less than this (default: as many as the data has)"""
    void_label: int | None = None
    """of label maps: the label that stands for none (default 255); -1: there is no such label"""
    crop_size: int | None = None
    """pixels a side of a training crop"""
    perceptual: str | None = None
    """lpips (fetches torchvision's VGG16 on first use), none, or the path of that file"""
    adversarial: Literal["hinge", "vanilla", "none"] | None = None
    """the discriminator's loss; none trains without one"""
    adversarial_start: int | None = None
    """the step at which the discriminator joins"""
    adversarial_ramp: int | None = None
    """steps over which it comes to be heard in full"""
    adversarial_weight: float | None = None
    """how much it is heard; with --adaptive yes, times the balance of gradients"""
    adaptive: Literal["yes", "no"] | None = None
    """balance it by gradients at the last layer, as the paper; no is steadier with 0.1 to 0.5"""
    lecam_weight: float | None = None
    """keep it from learning a small data set by heart (LeCAM): 0.001 to 0.1"""
    r1_weight: float | None = None
    """penalty on its slope at real images (R1)"""
    held_out: float = 0.1
    """share of the images, by key, that measure instead of train"""


def resolve_recipe(flags: TrainTokenizerFlags) -> TokenizerRecipe:
    """The recipe with the flags that were given laid over it."""
    recipe = override_recipe(TOKENIZER_RECIPES, flags.recipe, flags, "crop_size")
    given = {name: getattr(flags, name) for name in LOSS_FLAGS if getattr(flags, name) is not None}
    if flags.adaptive is not None:
        given["adaptive"] = flags.adaptive == "yes"
    recipe = dataclasses.replace(
        recipe,
        losses=dataclasses.replace(recipe.losses, **given),
        modality=resolve_modality(flags, recipe.modality),
    )
    factor = PRESETS[recipe.preset].downsample_factor
    if recipe.crop_size % factor:
        raise ConfigError(f"--crop-size {recipe.crop_size} is not a multiple of {factor}.")
    return recipe


def resolve_modality(flags: TrainTokenizerFlags, modality: ModalityConfig) -> ModalityConfig:
    """The recipe's content with the flags about label maps laid over it."""
    names = ("num_classes", "void_label")
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    if given and modality.kind != "segmentation":
        raise ConfigError(
            f"{flags.recipe} is for {make_modality(modality).noun}; --num-classes and --void-label "
            "are about label maps."
        )
    return dataclasses.replace(modality, **given)


class Data(NamedTuple):
    """What the flags name."""

    recipe: TokenizerRecipe
    files: TokenizerData


def open_data(flags: TrainTokenizerFlags) -> Data:
    """What the flags name, checked."""
    recipe = resolve_recipe(flags)
    files = list_data(flags.data, flags.targets, flags.held_out)
    if not files.learned:
        raise UserError(
            f"{flags.data} has no image to train on: of {len(files.measured)} listed, --held-out "
            f"{flags.held_out} leaves none."
        )
    modality = with_classes(recipe.modality, [*files.learned, *files.measured])
    return Data(dataclasses.replace(recipe, modality=modality), files)


def run_attempt(
    flags: TrainTokenizerFlags, ranks: Ranks, on_step: OnStep | None, data: Data | None = None
) -> int:
    """One process's part of a run; the steps it took."""
    use_threads(flags.threads)
    keep_freed_memory()
    device = resolve_device(flags.device)
    recipe, files = data or open_data(flags)
    modality = make_modality(recipe.modality)
    # Of several processes each keeps its own list: two cannot append to one file safely.
    ledger = Ledger(flags.out / (f"bad_images-{ranks.rank}.jsonl" if ranks.rank else BAD_IMAGES))
    for lost in files.lost if ranks.is_first else []:
        ledger.add(*lost)
    learned, shard_sizes = in_groups(files.learned)
    crops = ImageCrops(
        [(entry.key, read_entry(entry)) for entry in learned],
        batch_size=recipe.batch_size,
        crop_size=recipe.crop_size,
        scale_range=recipe.scale_range,
        seed=flags.seed,
        ledger=ledger,
        modality=modality,
        shard_sizes=shard_sizes,
    )
    measured = files.measured[:MOST_HELD_OUT]
    torch.manual_seed(flags.seed)  # for the discriminator's first weights
    train_task = TokenizerTask(
        build_tokenizer(recipe.preset, flags.seed, recipe.modality),
        recipe,
        steps=recipe.steps,
        held_out=evaluation_samples(modality, measured, recipe.evaluation_size, ledger.add),
        device=device,
        parallel_config=parallel_config_of(flags, ranks, device),
    )
    source = Source(
        functools.partial(crops.batch, ranks=ranks), functools.partial(crops.keys, ranks=ranks)
    )
    return train(train_task, source, flags.out, loop_settings(recipe, flags.seed), ranks, on_step)


def sizes(flags: TrainTokenizerFlags, data: Data) -> list[str]:
    """What the run will be, in words."""
    return tokenizer_lines(
        data.recipe,
        images=len(data.files.learned),
        held_out=len(data.files.measured),
        division=division_of(flags),
    )


def run(flags: TrainTokenizerFlags) -> int:
    reads = {"--data": flags.data}
    if flags.targets is not None:
        reads["--targets"] = flags.targets
    check_absolute({"--out": flags.out, **reads})
    flags = dataclasses.replace(
        flags,
        out=flags.out.absolute(),
        data=flags.data.absolute(),
        targets=flags.targets and flags.targets.absolute(),
    )
    data = open_data(flags)
    # Workers need not look for the classes again.
    flags = dataclasses.replace(flags, num_classes=data.recipe.modality.num_classes or None)
    if flags.dry_run:
        print("\n".join(sizes(flags, data)))
        return 0
    flags.out.mkdir(parents=True, exist_ok=True)
    pin_settings(flags.out, lasting_settings(data.recipe, held_out=flags.held_out, seed=flags.seed))
    mine = None if flags.workers else data  # workers list their own
    attempt = functools.partial(run_attempt, flags, data=mine)
    taken = run_attempts(flags.out, data.recipe.steps, attempt, worker_config_of(flags), reads)
    print(outcome(flags.out, taken, data.recipe.steps, _what_next(flags, data.recipe)))
    return 0


def _what_next(flags: TrainTokenizerFlags, recipe: TokenizerRecipe) -> str:
    if recipe.modality.kind == "image":
        return f"encode with python -m pipelines.encode --tokenizer {flags.out}"
    return f"measure with python -m pipelines.evaluate tokenizer {flags.out}"


def main(argv: list[str] | None = None) -> int:
    return run_command(TrainTokenizerFlags, run, argv, "pipelines.train_tokenizer")


if __name__ == "__main__":
    sys.exit(main())
