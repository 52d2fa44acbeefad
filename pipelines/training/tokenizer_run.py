"""A tokenizer's training run: the recipe and files that the flags name, each process's part."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ops.config import ConfigError, UserError
from ops.paths import AnyPath
from ops.ranks import Ranks
from ops.runtime import num_cores
from ops.web_paths import parse_source
from pipelines.flags import TrainTokenizerFlags
from pipelines.inputs import Entry, Ledger, fixed_path, read_entry
from pipelines.jobs import check_absolute
from pipelines.training.command import run_training, set_up_process
from pipelines.training.estimate import describe_tokenizer
from pipelines.training.flags import division_of, loop_settings, override_recipe
from pipelines.training.image_dataset import Crops, ImageCrops, load_batches
from pipelines.training.loop import OnStep, Source, train
from pipelines.training.recipe import TokenizerRecipe
from pipelines.training.run_folder import RunFolder
from pipelines.training.run_record import pin_settings, run_settings
from pipelines.training.streamed_crops import PositionLog, StreamedCrops, stream_settings
from pipelines.training.tar_streams import expand_tars
from pipelines.training.tokenizer_data import (
    TokenizerData,
    evaluation_samples,
    in_groups,
    list_data,
    with_classes,
)
from pipelines.training.tokenizer_task import TokenizerTask
from tokenizer import PRESETS, Modality, ModalityConfig, build_tokenizer, make_modality

MOST_HELD_OUT = 64  # images that are evaluated on
MOST_LOADER_WORKERS = 4  # by default
BAD_IMAGES = "bad_images.jsonl"
LOSS_FLAGS = (
    "perceptual", "adversarial", "adversarial_start", "adversarial_ramp", "adversarial_weight",
    "lecam_weight", "r1_weight",
)  # fmt: skip


def train_tokenizer(flags: TrainTokenizerFlags, recipes: Mapping[str, TokenizerRecipe]) -> str:
    """Train the recipe that the flags name in --out until its steps are done; the text to print.

    With --dry-run the text is the estimate of the run, and nothing is written. Raises ConfigError
    for wrong flags, UserError where the data has nothing to train on, and what run_attempts raises.
    """
    reads = _reads(flags)
    check_absolute({"--out": flags.out, **reads})
    flags = dataclasses.replace(
        flags,
        out=flags.out.absolute(),
        data=flags.data.absolute(),
        targets=flags.targets and flags.targets.absolute(),
    )
    recipe = resolve_recipe(flags, recipes)
    files = None
    if flags.stream:
        check_streamed(flags, recipe)
    else:
        files = list_files(flags)
        # Here, so that workers need not search the files for the highest label again.
        modality = with_classes(recipe.modality, [*files.learned, *files.measured])
        recipe = dataclasses.replace(recipe, modality=modality)
    if flags.dry_run:
        return "\n".join(describe_run(flags, recipe, files))
    settings = run_settings(recipe, held_out=flags.held_out, seed=flags.seed)
    if flags.stream:
        settings["stream"] = stream_settings(expand_tars(flags.data), flags.shuffle_buffer)

    def start(folder: Path, begun: bool) -> None:
        pin_settings(folder, settings, begun=begun)

    listed = None if flags.workers else files  # workers list the files themselves
    attempt = functools.partial(run_attempt, flags, recipe, listed)
    return run_training(flags, recipe.steps, start, attempt, reads, _next_step(flags, recipe))


def _reads(flags: TrainTokenizerFlags) -> dict[str, AnyPath]:
    """By flag, what every node must see of the data, but for what is at servers."""
    data = parse_source(expand_tars(flags.data)[0].path) if flags.stream else flags.data
    found = {"--data": fixed_path(data)}
    if flags.targets is not None:
        found["--targets"] = fixed_path(flags.targets)
    return {flag: path for flag, path in found.items() if path is not None}


def resolve_recipe(
    flags: TrainTokenizerFlags, recipes: Mapping[str, TokenizerRecipe]
) -> TokenizerRecipe:
    """The recipe, overridden by the flags given.

    Raises ConfigError where there is no such recipe, or the flags do not fit it.
    """
    recipe = override_recipe(recipes, flags.recipe, flags, "crop_size")
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


def list_files(flags: TrainTokenizerFlags) -> TokenizerData:
    """The files that the flags name; raises UserError where there is none to train on."""
    files = list_data(flags.data, flags.targets, flags.held_out)
    if not files.learned:
        raise UserError(
            f"{flags.data} has no image to train on: of {len(files.measured)} listed, --held-out "
            f"{flags.held_out} leaves none."
        )
    return files


def loader_workers(flags: TrainTokenizerFlags, device: torch.device) -> int:
    """Processes that decode images for one training process on `device`."""
    if flags.num_workers is not None:
        return flags.num_workers
    cores = flags.cpus_per_worker if flags.workers else num_cores()
    # On CPUs the training itself uses all cores.
    return min(MOST_LOADER_WORKERS, cores - 1 if device.type == "cuda" else cores // 4)


def run_attempt(
    flags: TrainTokenizerFlags,
    recipe: TokenizerRecipe,
    files: TokenizerData | None,
    run: RunFolder,
    ranks: Ranks,
    on_step: OnStep | None,
) -> int:
    """One process's part of one attempt, which lists `files` if they are None; the steps it took.

    `recipe` has its number of classes.
    """
    device, parallel_config = set_up_process(flags, run, ranks)
    modality = make_modality(recipe.modality)
    # One ledger for each process: two processes cannot append to one file safely.
    ledger = Ledger(run.folder / (f"bad_images-{ranks.rank}.jsonl" if ranks.rank else BAD_IMAGES))
    if flags.stream:
        crops, measured = _streamed(flags, recipe, modality, run, ranks)
    else:
        files = files or list_files(flags)
        for lost in files.lost if ranks.is_first else []:
            ledger.add(*lost)
        crops, measured = _listed(flags, recipe, modality, files)
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
    return train(train_task, source, run, loop_settings(recipe, flags), ranks, on_step)


def _listed(
    flags: TrainTokenizerFlags,
    recipe: TokenizerRecipe,
    modality: Modality,
    files: TokenizerData,
) -> tuple[Crops, list[Entry]]:
    """Crops of the listed files, and those to evaluate on."""
    learned, shard_sizes = in_groups(files.learned)
    crops = ImageCrops(
        [(entry.key, read_entry(entry)) for entry in learned],
        shard_sizes=shard_sizes,
        **_crop_settings(flags, recipe, modality),
    )
    return crops, files.measured[:MOST_HELD_OUT]


def _streamed(
    flags: TrainTokenizerFlags,
    recipe: TokenizerRecipe,
    modality: Modality,
    run: RunFolder,
    ranks: Ranks,
) -> tuple[Crops, list[Entry]]:
    """Crops of the images in the tars, and the first of those to evaluate on."""
    tars, buffer = expand_tars(flags.data), flags.shuffle_buffer
    order = {
        **stream_settings(tars, buffer),
        "batch_size": recipe.batch_size,
        "seed": flags.seed,
        "held_out": flags.held_out,
    }
    crops = StreamedCrops(
        tars,
        PositionLog(run.folder, ranks.rank, order),
        buffer=buffer,
        held_out_share=flags.held_out,
        **_crop_settings(flags, recipe, modality),
    )
    return crops, crops.streams.measured(MOST_HELD_OUT)


def _crop_settings(
    flags: TrainTokenizerFlags, recipe: TokenizerRecipe, modality: Modality
) -> dict[str, Any]:
    return {
        "batch_size": recipe.batch_size,
        "crop_size": recipe.crop_size,
        "scale_range": recipe.scale_range,
        "seed": flags.seed,
        "modality": modality,
    }


def check_streamed(flags: TrainTokenizerFlags, recipe: TokenizerRecipe) -> None:
    """Raise ConfigError where what --stream cannot do is asked for."""
    if flags.targets is not None:
        raise ConfigError("--targets has partners listed by name. Leave it or --stream out.")
    if recipe.modality.kind == "segmentation" and not recipe.modality.num_classes:
        raise ConfigError("--stream looks for no labels beforehand: give their --num-classes.")


def describe_run(
    flags: TrainTokenizerFlags, recipe: TokenizerRecipe, files: TokenizerData | None
) -> list[str]:
    """Parameters, batches, epochs and memory of the run, a line each."""
    return describe_tokenizer(
        recipe,
        images=len(files.learned) if files else None,
        held_out=len(files.measured) if files else 0,
        division=division_of(flags),
    )


def _next_step(flags: TrainTokenizerFlags, recipe: TokenizerRecipe) -> str:
    if recipe.modality.kind == "image":
        return f"encode with python -m pipelines.encode --tokenizer {flags.out}"
    return f"measure with python -m pipelines.evaluate tokenizer {flags.out}"
