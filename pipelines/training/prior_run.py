"""A prior's training run: the stores that the flags name, the model, and each process's part."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ops.config import ConfigError
from ops.paths import AnyPath
from ops.ranks import ALONE, Ranks
from pipelines.conditioning import (
    keep_tokenizers,
    make_conditions,
    own_tokenizers,
    tokenizer_info,
    tracks_of,
)
from pipelines.flags import TrainPriorFlags
from pipelines.jobs import check_absolute
from pipelines.store import CodeStore
from pipelines.streaming import CodeDataset, check_tokenizer
from pipelines.training.command import run_training, set_up_process
from pipelines.training.estimate import describe_prior
from pipelines.training.flags import division_of, loop_settings, override_recipe
from pipelines.training.loop import OnStep, Source, train
from pipelines.training.prior_task import PriorTask, held_out_cut
from pipelines.training.recipe import PriorRecipe
from pipelines.training.run_folder import RunFolder
from pipelines.training.run_record import pin_settings, run_settings
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


class PriorData(NamedTuple):
    """The data that the flags name."""

    stores: list[CodeStore]
    dataset: CodeDataset
    conditions: Conditions
    code_levels: tuple[int, ...]
    """levels to embed and predict codes by; none: each code by itself"""


def train_prior(flags: TrainPriorFlags, recipes: Mapping[str, PriorRecipe]) -> str:
    """Train the recipe that the flags name in --out until its steps are done; the text to print.

    With --dry-run the text is the estimate of the run, and nothing is written. Raises ConfigError
    for wrong flags, and what run_attempts raises.
    """
    reads: dict[str, AnyPath] = {
        "--codes" if n == 0 else f"--codes {n}": p for n, p in enumerate(flags.codes)
    }
    check_absolute({"--out": flags.out, **reads})
    if flags.shard and not flags.workers:
        raise ConfigError("--shard shards the weights over workers: give --workers, too.")
    flags = dataclasses.replace(
        flags, out=flags.out.absolute(), codes=tuple(path.absolute() for path in flags.codes)
    )
    recipe = override_recipe(recipes, flags.recipe, flags, "window", "ordering", "factorised")
    data = open_data(flags, recipe)
    if flags.dry_run:
        return "\n".join(describe_run(flags, recipe, data))
    start = functools.partial(start_run, flags, recipe, data)
    opened = None if flags.workers else data  # workers open the stores themselves
    attempt = functools.partial(run_attempt, flags, recipe, opened)
    next_step = f"generate with python -m pipelines.generate --prior {flags.out}"
    return run_training(flags, recipe.steps, start, attempt, reads, next_step)


def open_data(flags: TrainPriorFlags, recipe: PriorRecipe, ranks: Ranks = ALONE) -> PriorData:
    """Open and check the stores that the flags name.

    The dataset yields one rank's part of each batch. Raises ConfigError where no store is named, or
    the stores and conditions do not fit the recipe.
    """
    if not flags.codes:
        raise ConfigError("--codes names no store. Name one that pipelines.encode wrote.")
    stores = [
        CodeStore.open(path, cache_dir=flags.cache_dir, cache_bytes=int(flags.cache_size * 2**30))
        for path in flags.codes
    ]
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
    levels = code_levels(recipe, stores[0])
    check_reach(prior_config(recipe, conditions, levels), stores)
    return PriorData(stores, dataset, conditions, levels)


def code_levels(recipe: PriorRecipe, store: CodeStore) -> tuple[int, ...]:
    """The levels of a store's codes, by its tokenizer, unless the recipe is not factorised.

    Raises ConfigError where codes have none and the recipe requires them.
    """
    if recipe.factorised == "no":
        return ()
    tokenizer = load_tokenizer(store.tokenizer_folder)
    levels = tokenizer.quantizer.code_levels
    if not levels and recipe.factorised == "yes":
        raise ConfigError(
            f"--factorised yes needs codes that are made of levels, as those of fsq and lfq; the "
            f"tokenizer of {store.path} has the quantizer {tokenizer.config.quantizer.kind!r}. Use "
            "--factorised no."
        )
    return levels


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


def prior_config(
    recipe: PriorRecipe, conditions: Conditions, levels: tuple[int, ...] = ()
) -> PriorConfig:
    """The config of the recipe's preset, sized for these codes, of these levels, and conditions.

    Raises ConfigError where the preset cannot predict codes in the recipe's ordering.
    """
    order = {} if recipe.ordering == ROW_MAJOR else {"ordering": recipe.ordering}
    return preset_config(
        recipe.preset,
        **order,
        **condition_sizes(recipe.preset, conditions, recipe.window, levels),
        dropout=recipe.dropout,
    )


def untrained_model(
    recipe: PriorRecipe,
    conditions: Conditions,
    tokenizer: VQGAN,
    seed: int,
    levels: tuple[int, ...] = (),
) -> PriorModel:
    """A model of the recipe's preset for these codes and conditions, initialised from `seed`."""
    torch.manual_seed(seed)
    model = make_model(prior_config(recipe, conditions, levels))
    if recipe.init_from_codebook:
        every_code = torch.arange(conditions.codebook_size).view(1, 1, -1)
        init_from_codebook(model, tokenizer.quantizer.lookup(every_code)[0, :, 0].T)
    return model


def start_run(
    flags: TrainPriorFlags, recipe: PriorRecipe, data: PriorData, folder: Path, begun: bool
) -> None:
    """Write tokenizers and settings into the run folder, or check those of a run that has begun.

    With the tokenizers in it, generate needs nothing but the run folder.
    """
    keep_tokenizers(folder, data.stores[0], own_tokenizers(flags.conditions), begun=begun)
    kept = load_tokenizer(folder / "tokenizer").fingerprint
    check_tokenizer(data.stores[0], kept, f"the prior in {flags.out}")
    settings = run_settings(
        recipe,
        conditions=data.conditions.to_json(),
        order=data.dataset.order,
        held_out=flags.held_out,
        seed=flags.seed,
    )
    pin_settings(folder, settings, begun=begun)


def run_attempt(
    flags: TrainPriorFlags,
    recipe: PriorRecipe,
    data: PriorData | None,
    run: RunFolder,
    ranks: Ranks,
    on_step: OnStep | None,
) -> int:
    """One process's part of one attempt, which opens `data` if it is None; the steps it took."""
    device, parallel_config = set_up_process(flags, run, ranks, shard=flags.shard)
    _, dataset, conditions, levels = data or open_data(flags, recipe, ranks)
    tokenizer = load_tokenizer(run.folder / "tokenizer")
    model = untrained_model(recipe, conditions, tokenizer, flags.seed, levels)
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
    return train(train_task, source, run, loop_settings(recipe, flags), ranks, on_step)


def describe_run(flags: TrainPriorFlags, recipe: PriorRecipe, data: PriorData) -> list[str]:
    """Parameters, batches, epochs and memory of the run, a line each."""
    sources = data.dataset.sources
    return describe_prior(
        prior_config(recipe, data.conditions, data.code_levels),
        recipe,
        images=sum(len(source.train) for source in sources),
        held_out=sum(len(source.held_out) for source in sources),
        division=division_of(flags, shard=flags.shard),
    )
