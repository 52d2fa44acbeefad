"""The flags of train_tokenizer and train_prior, and the configs made of those that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ops.config import ConfigError, check_flags
from ops.precision import resolve_precision
from ops.ranks import Ranks
from pipelines.flags import (
    TrainingFlags,
)
from pipelines.training.estimate import Division
from pipelines.training.launch import WorkerConfig
from pipelines.training.loop import LoopSettings
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recipe import LOOP_FIELDS, PriorRecipe, TokenizerRecipe

Recipe = TypeVar("Recipe", TokenizerRecipe, PriorRecipe)


def override_recipe(
    recipes: Mapping[str, Recipe], name: str, flags: TrainingFlags, *more: str
) -> Recipe:
    """The recipe `name`, overridden by the flags given: the shared ones and those named in `more`.

    Raises ConfigError where there is no such recipe, or a flag is out of range.
    """
    check_flags(flags)
    if name not in recipes:
        raise ConfigError(f"No recipe {name!r}; there are {', '.join(recipes)}.")
    recipe = recipes[name]
    given: dict[str, Any] = {}
    for field in (*LOOP_FIELDS, "batch_size", *more):
        value = getattr(flags, field)
        if value is not None:
            given[field] = value
    if flags.learning_rate is not None:
        optimizer = dataclasses.replace(recipe.optimizer, learning_rate=flags.learning_rate)
        given["optimizer"] = optimizer
    recipe = dataclasses.replace(recipe, **given)
    _check_division(recipe.batch_size, flags)
    return recipe


def _check_division(batch_size: int, flags: TrainingFlags) -> None:
    """Raise ConfigError unless all workers' micro-batches have equally many samples."""
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers, the number of processes to train there.")
    parts = flags.accumulate * max(1, flags.workers)
    if batch_size % parts:
        raise ConfigError(
            f"A batch of {batch_size} samples does not divide evenly by {parts} (--workers times "
            f"--accumulate). Use --batch-size {-(-batch_size // parts) * parts}, or other numbers."
        )


def parallel_config_of(
    flags: TrainingFlags, ranks: Ranks, device: torch.device, shard: bool = False
) -> ParallelConfig:
    """How a process of `ranks` that trains on `device` computes its steps."""
    return ParallelConfig(
        ranks=ranks,
        accumulate=flags.accumulate,
        compile=device.type == "cuda" if flags.compile == "auto" else flags.compile == "yes",
        precision=resolve_precision(flags.precision, device.type),
        recompute=flags.recompute,
        shard=shard,
    )


def division_of(flags: TrainingFlags, shard: bool = False) -> Division:
    """How batches will be divided, as far as it can be known before the workers start."""
    gpu = flags.device.startswith("cuda") or (flags.device == "auto" and torch.cuda.is_available())
    return Division(
        workers=max(1, flags.workers),
        accumulate=flags.accumulate,
        recompute=flags.recompute,
        shard=shard,
        bfloat16=flags.precision == "bfloat16" or (flags.precision == "auto" and gpu),
    )


def worker_config_of(flags: TrainingFlags) -> WorkerConfig:
    """The worker processes that the flags name."""
    return WorkerConfig(
        workers=flags.workers,
        address=flags.address,
        cpus_per_worker=flags.cpus_per_worker,
        device=flags.device,
        restarts=flags.restarts,
    )


def loop_settings(recipe: TokenizerRecipe | PriorRecipe, flags: TrainingFlags) -> LoopSettings:
    """The training loop's settings of a recipe and the flags."""
    return LoopSettings(
        seed=flags.seed,
        save_minutes=flags.save_minutes,
        skip_non_finite=flags.skip_non_finite,
        **{name: getattr(recipe, name) for name in LOOP_FIELDS},
    )
