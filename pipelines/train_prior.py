#!/usr/bin/env python3
"""Train a prior on code stores: python -m pipelines.train_prior RECIPE --codes STORE --out RUN.

Streams the stores' memory-mapped shards; run again, it goes on from the newest whole checkpoint.
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
from ops.runtime import keep_freed_memory, resolve_device
from pipelines.conditioning import make_conditions, tracks_of
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
    division_of,
    held_out_cut,
    keep_tokenizers,
    lasting_settings,
    loop_settings,
    outcome,
    override_recipe,
    parallel_config_of,
    pin_settings,
    prior_lines,
    run_attempts,
    train,
    use_threads,
    worker_config_of,
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
    """Train a transformer prior on a code store, and resume where an earlier run stopped."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-local, base, large, ...: see pipelines/recipes.py"""
    codes: tuple[Path, ...]
    """the stores that pipelines.encode wrote, by one tokenizer"""
    weights: tuple[float, ...] | None = None
    """how much of the batches comes from each store (default: by their numbers of images)"""
    conditions: tuple[str, ...] = ("sos",)
    """what the prior is told, one or several: sos (nothing), class (the sub-folder an image is in),
    segmentation, depth, low_res, boxes, keypoints (the stores' tracks of these names, see encode's
    --track), inpaint (the codes around holes), coordinates (where in the picture a window lies)"""
    window: int | None = None
    """codes a side of the square that the prior sees at once"""
    ordering: str | None = None
    """order in which a window's codes are foretold: row-major, alternate, spiral-in, spiral-out,
    z-curve, subsample or random"""
    every_view: bool = False
    """each view of an image comes once an epoch, instead of one of them drawn"""
    cache_memory: float | None = None
    """GiB for codes that are slow to reach: shuffle within as many shards as fit in it"""
    held_out: float = 0.05
    """share of the images, by key, that measure instead of train"""
    shard: bool = False
    """part the weights among the workers, too (FSDP): for models beyond one card"""


class Data(NamedTuple):
    """What the flags name."""

    recipe: PriorRecipe
    stores: list[CodeStore]
    dataset: CodeDataset
    conditions: Conditions


def open_data(flags: TrainPriorFlags, ranks: Ranks = ALONE) -> Data:
    """What the flags name, checked; the data set gives the parts of one process of `ranks`."""
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
        world=ranks.world,
    )
    conditions = make_conditions(flags.conditions, stores, dataset.label_names)
    check_reach(prior_config(recipe, conditions), stores)
    return Data(recipe, stores, dataset, conditions)


def check_reach(config: PriorConfig, stores: list[CodeStore]) -> None:
    """Raise ConfigError where windows would cut off what each of their cells is told.

    Only priors without windows mind, and only windows that are not whole grids.
    """
    whole = f"{config.window}x{config.window}"
    cut = [grid for store in stores for grid in store.grids if grid != whole]
    if cut and isinstance(config, LocalConfig) and config.window <= config.reach:
        raise ConfigError(
            f"This prior hears of codes up to {config.reach} away, and there is no cell so far "
            f"from the edges of windows of {whole} in grids of {cut[0]}. Use --window "
            f"{config.reach + 8} or more, or encode to grids of {whole}."
        )


def prior_config(recipe: PriorRecipe, conditions: Conditions) -> PriorConfig:
    """The recipe's preset, sized for these codes and conditions.

    Raises ConfigError where it cannot foretell codes in the recipe's order.
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
    """An untrained model of the recipe's preset for these codes and conditions."""
    torch.manual_seed(seed)
    model = make_model(prior_config(recipe, conditions))
    if recipe.init_from_codebook:
        every_code = torch.arange(conditions.codebook_size).view(1, 1, -1)
        init_from_codebook(model, tokenizer.quantizer.lookup(every_code)[0, :, 0].T)
    return model


def start_run(flags: TrainPriorFlags, data: Data) -> None:
    """Put into the run folder what every process needs there; an old one must be of this run.

    The store's tokenizers are among it, so that generate needs the run alone.
    """
    keep_tokenizers(flags.out, data.stores[0], data.dataset.tracks)
    kept = load_tokenizer(flags.out / "tokenizer").fingerprint
    check_tokenizer(data.stores[0], kept, f"the prior in {flags.out}")
    lasting = lasting_settings(
        data.recipe,
        conditions=data.conditions.to_json(),
        order=data.dataset.order,
        held_out=flags.held_out,
        seed=flags.seed,
    )
    pin_settings(flags.out, lasting)


def tokenizer_info(tokenizer: VQGAN) -> dict[str, Any]:
    """What a prior remembers of the tokenizer whose codes it speaks."""
    return {
        "name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }


def run_attempt(
    flags: TrainPriorFlags, ranks: Ranks, on_step: OnStep | None, data: Data | None = None
) -> int:
    """One process's part of a run that was started; the steps it took."""
    use_threads(flags.threads)
    keep_freed_memory()
    device = resolve_device(flags.device)
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
        parallel_config=parallel_config_of(flags, ranks, device, shard=flags.shard),
    )
    source = Source(dataset.train_batch, dataset.train_keys)
    return train(train_task, source, flags.out, loop_settings(recipe, flags.seed), ranks, on_step)


def sizes(flags: TrainPriorFlags, data: Data) -> list[str]:
    """What the run will be, in words."""
    sources = data.dataset.sources
    return prior_lines(
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
        raise ConfigError("--shard parts the weights among workers: give --workers, too.")
    flags = dataclasses.replace(
        flags, out=flags.out.absolute(), codes=tuple(path.absolute() for path in flags.codes)
    )
    data = open_data(flags)
    if flags.dry_run:
        print("\n".join(sizes(flags, data)))
        return 0
    start_run(flags, data)
    mine = None if flags.workers else data  # workers open their own
    attempt = functools.partial(run_attempt, flags, data=mine)
    taken = run_attempts(flags.out, data.recipe.steps, attempt, worker_config_of(flags), reads)
    print(outcome(flags.out, taken, data.recipe.steps, "paint with python -m pipelines.generate"))
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(TrainPriorFlags, run, argv, "pipelines.train_prior")


if __name__ == "__main__":
    sys.exit(main())
