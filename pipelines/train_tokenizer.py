#!/usr/bin/env python3
"""Train a VQGAN: python -m pipelines.train_tokenizer RECIPE --data --out.

On images, label maps or depth maps. Run again, it resumes from the newest checkpoint.
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
from ops.runtime import num_cores
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
    describe_tokenizer,
    division_of,
    evaluation_samples,
    in_groups,
    list_data,
    load_batches,
    loop_settings,
    override_recipe,
    pin_settings,
    run_settings,
    run_training,
    set_up_process,
    train,
    with_classes,
)
from tokenizer import PRESETS, ModalityConfig, build_tokenizer, make_modality

MOST_HELD_OUT = 64  # images that are evaluated on
MOST_LOADER_WORKERS = 4  # by default
BAD_IMAGES = "bad_images.jsonl"
LOSS_FLAGS = (
    "perceptual", "adversarial", "adversarial_start", "adversarial_ramp", "adversarial_weight",
    "lecam_weight", "r1_weight",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags(TrainingFlags):
    """Train a VQGAN on photographs, label maps or depth maps; run again, it resumes."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-segmentation, tiny-depth, photo-f8 or another of pipelines/recipes.py"""
    data: Path
    """a folder of images, tar files (WebDataset) or Parquet tables, searched with all its
    sub-folders; or one such file"""
    targets: Path | None = None
    """a folder of label maps or depth maps with the names of --data's images, to train on instead
    of these; the same names are held out"""
    num_classes: int | None = None
    """of label maps: labels are below this number (default: the highest label in the data + 1)"""
    void_label: int | None = None
    """of label maps: the label of unlabelled pixels (default 255); -1: there is no such label"""
    crop_size: int | None = None
    """side, in pixels, of a training crop"""
    perceptual: str | None = None
    """lpips (downloads torchvision's VGG16 on first use), none, or the path of that file"""
    adversarial: Literal["hinge", "vanilla", "none"] | None = None
    """the discriminator's loss; none trains without one"""
    adversarial_start: int | None = None
    """the step from which the discriminator is trained and its loss is used"""
    adversarial_ramp: int | None = None
    """steps over which the weight of its loss rises to its full value"""
    adversarial_weight: float | None = None
    """weight of its loss; with --adaptive yes, times the adaptive weight"""
    adaptive: Literal["yes", "no"] | None = None
    """weigh it by the ratio of gradients at the last layer, as in the paper; no, with a weight of
    0.1 to 0.5, is more stable"""
    lecam_weight: float | None = None
    """LeCAM regularisation of the discriminator, against overfitting small data: 0.001 to 0.1"""
    r1_weight: float | None = None
    """R1 penalty on the discriminator's gradient at real images"""
    held_out: float = 0.1
    """share of the images, by key, held out for evaluation"""
    num_workers: int | None = None
    """processes that decode images for each training process; 0: a thread of it does (default: on
    a GPU one less than its CPU cores, else a quarter of them; at most 4)"""


def resolve_recipe(flags: TrainTokenizerFlags) -> TokenizerRecipe:
    """The recipe, overridden by the flags given."""
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
    """The recipe's modality, overridden by the flags about label maps."""
    names = ("num_classes", "void_label")
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    if given and modality.kind != "segmentation":
        raise ConfigError(
            f"{flags.recipe} is for {make_modality(modality).noun}; --num-classes and --void-label "
            "are about label maps."
        )
    return dataclasses.replace(modality, **given)


class Data(NamedTuple):
    """The recipe and files that the flags name."""

    recipe: TokenizerRecipe
    files: TokenizerData


def open_data(flags: TrainTokenizerFlags) -> Data:
    """List and check what the flags name."""
    recipe = resolve_recipe(flags)
    files = list_data(flags.data, flags.targets, flags.held_out)
    if not files.learned:
        raise UserError(
            f"{flags.data} has no image to train on: of {len(files.measured)} listed, --held-out "
            f"{flags.held_out} leaves none."
        )
    modality = with_classes(recipe.modality, [*files.learned, *files.measured])
    return Data(dataclasses.replace(recipe, modality=modality), files)


def loader_workers(flags: TrainTokenizerFlags, device: torch.device) -> int:
    """Processes that decode images for one training process on `device`."""
    if flags.num_workers is not None:
        return flags.num_workers
    cores = flags.cpus_per_worker if flags.workers else num_cores()
    # On CPUs the training itself uses all cores.
    return min(MOST_LOADER_WORKERS, cores - 1 if device.type == "cuda" else cores // 4)


def run_attempt(
    flags: TrainTokenizerFlags, ranks: Ranks, on_step: OnStep | None, data: Data | None = None
) -> int:
    """One process's part of one attempt; returns the steps it took."""
    device, parallel_config = set_up_process(flags, ranks)
    recipe, files = data or open_data(flags)
    modality = make_modality(recipe.modality)
    # One ledger for each process: two processes cannot append to one file safely.
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
        modality=modality,
        shard_sizes=shard_sizes,
    )
    measured = files.measured[:MOST_HELD_OUT]
    torch.manual_seed(flags.seed)  # for the discriminator's initial weights
    train_task = TokenizerTask(
        build_tokenizer(recipe.preset, flags.seed, recipe.modality),
        recipe,
        steps=recipe.steps,
        held_out=evaluation_samples(modality, measured, recipe.evaluation_size, ledger.add),
        device=device,
        parallel_config=parallel_config,
    )
    workers = loader_workers(flags, device)
    batches = functools.partial(load_batches, crops, ledger, ranks=ranks, num_workers=workers)
    source = Source(batches, functools.partial(crops.keys, ranks=ranks))
    return train(train_task, source, flags.out, loop_settings(recipe, flags.seed), ranks, on_step)


def describe_run(flags: TrainTokenizerFlags, data: Data) -> list[str]:
    """Parameters, batches, epochs and memory of the run, a line each."""
    return describe_tokenizer(
        data.recipe,
        images=len(data.files.learned),
        held_out=len(data.files.measured),
        division=division_of(flags),
    )


def run(flags: TrainTokenizerFlags) -> int:
    if flags.num_workers is not None and flags.num_workers < 0:
        raise ConfigError(f"--num-workers must be at least 0, found {flags.num_workers}.")
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
    # So that workers need not search the files for the highest label again.
    flags = dataclasses.replace(flags, num_classes=data.recipe.modality.num_classes or None)
    if flags.dry_run:
        print("\n".join(describe_run(flags, data)))
        return 0
    flags.out.mkdir(parents=True, exist_ok=True)
    pin_settings(flags.out, run_settings(data.recipe, held_out=flags.held_out, seed=flags.seed))
    listed = None if flags.workers else data  # workers list the files themselves
    attempt = functools.partial(run_attempt, flags, data=listed)
    steps, next_step = data.recipe.steps, _next_step(flags, data.recipe)
    print(run_training(flags, steps, attempt, reads, next_step))
    return 0


def _next_step(flags: TrainTokenizerFlags, recipe: TokenizerRecipe) -> str:
    if recipe.modality.kind == "image":
        return f"encode with python -m pipelines.encode --tokenizer {flags.out}"
    return f"measure with python -m pipelines.evaluate tokenizer {flags.out}"


def main(argv: list[str] | None = None) -> int:
    return run_command(TrainTokenizerFlags, run, argv, "pipelines.train_tokenizer")


if __name__ == "__main__":
    sys.exit(main())
