#!/usr/bin/env python3
"""Train a prior on code stores: python -m pipelines.train_prior RECIPE --codes STORE --out RUN.

Reads the stores' memory-mapped shards; run again, it resumes from the newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro

from ops.config import ConfigError
from ops.ranks import ALONE, Ranks
from pipelines.conditioning import make_conditions, own_tokenizers, tracks_of
from pipelines.console import run_command
from pipelines.jobs import check_absolute
from pipelines.recipes import PRIOR_RECIPES
from pipelines.store import CodeStore
from pipelines.streaming import CodeDataset, check_tokenizer
from pipelines.training import (
    OnStep,
    PriorRecipe,
    PriorTask,
    Source,
    TrainingFlags,
    describe_prior,
    division_of,
    held_out_cut,
    keep_tokenizers,
    loop_settings,
    override_recipe,
    pin_settings,
    run_settings,
    run_training,
    set_up_process,
    train,
)
from prior import (
    ROW_MAJOR,
    Conditions,
    LocalConfig,
    PriorConfig,
    PriorModel,
    condition_sizes,
    init_from_codebook,
    make_model,
    preset_config,
)
from tokenizer import VQGAN, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainPriorFlags(TrainingFlags):
    """Train a prior on code stores; run again, it resumes from the newest checkpoint."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-local, base, large, ...: see pipelines/recipes.py"""
    codes: tuple[Path, ...]
    """stores written by pipelines.encode, all with one tokenizer"""
    weights: tuple[float, ...] | None = None
    """relative weights of the stores in batches (default: their numbers of images)"""
    conditions: tuple[str, ...] = ("sos",)
    """what the prior is conditioned on, one or several: sos (nothing), class (the sub-folder an
    image is in), segmentation, depth, low_res, boxes, keypoints (the stores' tracks of these names,
    see encode's --track), inpaint (the codes around holes), coordinates (where in the image a
    window lies)"""
    window: int | None = None
    """side, in codes, of the square window that the prior is trained on"""
    ordering: str | None = None
    """order in which a window's codes are predicted: row-major, alternate, spiral-in, spiral-out,
    z-curve, subsample or random"""
    every_view: bool = False
    """train on each view of an image once an epoch, instead of on one of them at random"""
    cache_memory: float | None = None
    """GiB of memory for codes on slow storage: shuffle within as many shards as fit in it"""
    held_out: float = 0.05
    """share of the images, by key, held out for evaluation"""
    shard: bool = False
    """also shard the weights over the workers (FSDP), for models beyond one GPU"""


class Data(NamedTuple):
    """The recipe and data that the flags name."""

    recipe: PriorRecipe
    stores: list[CodeStore]
    dataset: CodeDataset
    conditions: Conditions


def open_data(flags: TrainPriorFlags, ranks: Ranks = ALONE) -> Data:
    """Open and check what the flags name; the dataset yields one rank's part of each batch."""
    recipe = override_recipe(PRIOR_RECIPES, flags.recipe, flags, "window", "ordering")
    if not flags.codes:
        raise ConfigError("--codes names no store. Name one that pipelines.encode wrote.")
    stores = [CodeStore.open(path) for path in flags.codes]
    dataset = CodeDataset(
        stores,
        window=recipe.window,
        batch_size=recipe.batch_size // ranks.world,
        seed=flags.seed,
        held_out_share=flags.held_out,
        weights=flags.weights,
        every_view=flags.every_view,
        tracks=tracks_of(flags.conditions),
        cache_memory=None if flags.cache_memory is None else int(flags.cache_memory * 2**30),
        rank=ranks.rank,
        world_size=ranks.world,
    )
    conditions = make_conditions(flags.conditions, stores, dataset.label_names)
    check_reach(prior_config(recipe, conditions), stores)
    return Data(recipe, stores, dataset, conditions)


def check_reach(config: PriorConfig, stores: list[CodeStore]) -> None:
    """Raise ConfigError where windows would cut off part of every cell's neighbourhood.

    Concerns only local priors, and only windows that are crops of larger grids.
    """
    whole = f"{config.window}x{config.window}"
    cut = [grid for store in stores for grid in store.grids if grid != whole]
    if cut and isinstance(config, LocalConfig) and config.window <= config.reach:
        raise ConfigError(
            f"This prior attends to codes up to {config.reach} away, and no cell is so far from "
            f"the edges of windows of {whole} in grids of {cut[0]}. Use --window "
            f"{config.reach + 8} or more, or encode to grids of {whole}."
        )


def prior_config(recipe: PriorRecipe, conditions: Conditions) -> PriorConfig:
    """The config of the recipe's preset, sized for these codes and conditions.

    Raises ConfigError where the preset cannot predict codes in the recipe's ordering.
    """
    order = {} if recipe.ordering == ROW_MAJOR else {"ordering": recipe.ordering}
    return preset_config(
        recipe.preset,
        **order,
        **condition_sizes(recipe.preset, conditions, recipe.window),
        dropout=recipe.dropout,
    )


def untrained_model(
    recipe: PriorRecipe, conditions: Conditions, tokenizer: VQGAN, seed: int
) -> PriorModel:
    """A model of the recipe's preset for these codes and conditions, initialised from `seed`."""
    torch.manual_seed(seed)
    model = make_model(prior_config(recipe, conditions))
    if recipe.init_from_codebook:
        every_code = torch.arange(conditions.codebook_size).view(1, 1, -1)
        init_from_codebook(model, tokenizer.quantizer.lookup(every_code)[0, :, 0].T)
    return model


def start_run(flags: TrainPriorFlags, data: Data) -> None:
    """Write tokenizers and settings into the run folder, or check those of a run to resume.

    With the tokenizers in it, generate needs nothing but the run folder.
    """
    keep_tokenizers(flags.out, data.stores[0], own_tokenizers(flags.conditions))
    kept = load_tokenizer(flags.out / "tokenizer").fingerprint
    check_tokenizer(data.stores[0], kept, f"the prior in {flags.out}")
    settings = run_settings(
        data.recipe,
        conditions=data.conditions.to_json(),
        order=data.dataset.order,
        held_out=flags.held_out,
        seed=flags.seed,
    )
    pin_settings(flags.out, settings)


def tokenizer_info(tokenizer: VQGAN) -> dict[str, Any]:
    """What a prior's model folder records of the tokenizer of its codes."""
    return {
        "name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }


def run_attempt(
    flags: TrainPriorFlags, ranks: Ranks, on_step: OnStep | None, data: Data | None = None
) -> int:
    """One process's part of one attempt; returns the steps it took."""
    device, parallel_config = set_up_process(flags, ranks, shard=flags.shard)
    recipe, _, dataset, conditions = data or open_data(flags, ranks)
    tokenizer = load_tokenizer(flags.out / "tokenizer")
    model = untrained_model(recipe, conditions, tokenizer, flags.seed)
    train_task = PriorTask(
        model,
        conditions,
        tokenizer,
        tokenizer_info(tokenizer),
        recipe,
        steps=recipe.steps,
        seed=flags.seed,
        held_out=dataset.held_out_batches(cut=held_out_cut(model.config)),
        examples=dataset.train_batch(0),
        device=device,
        parallel_config=parallel_config,
    )
    source = Source(dataset.batches, dataset.train_keys)
    return train(train_task, source, flags.out, loop_settings(recipe, flags.seed), ranks, on_step)


def describe_run(flags: TrainPriorFlags, data: Data) -> list[str]:
    """Parameters, batches, epochs and memory of the run, a line each."""
    sources = data.dataset.sources
    return describe_prior(
        prior_config(data.recipe, data.conditions),
        data.recipe,
        images=sum(len(source.train) for source in sources),
        held_out=sum(len(source.held_out) for source in sources),
        division=division_of(flags, shard=flags.shard),
    )


def run(flags: TrainPriorFlags) -> int:
    reads = {"--codes" if n == 0 else f"--codes {n}": p for n, p in enumerate(flags.codes)}
    check_absolute({"--out": flags.out, **reads})
    if flags.shard and not flags.workers:
        raise ConfigError("--shard shards the weights over workers: give --workers, too.")
    flags = dataclasses.replace(
        flags, out=flags.out.absolute(), codes=tuple(path.absolute() for path in flags.codes)
    )
    data = open_data(flags)
    if flags.dry_run:
        print("\n".join(describe_run(flags, data)))
        return 0
    start_run(flags, data)
    opened = None if flags.workers else data  # workers open the stores themselves
    attempt = functools.partial(run_attempt, flags, data=opened)
    next_step = f"generate with python -m pipelines.generate --prior {flags.out}"
    print(run_training(flags, data.recipe.steps, attempt, reads, next_step))
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(TrainPriorFlags, run, argv, "pipelines.train_prior")


if __name__ == "__main__":
    sys.exit(main())
