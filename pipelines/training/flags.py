"""The flags that train_tokenizer and train_prior share, and the configs made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from ops.config import ConfigError
from ops.ranks import Ranks
from pipelines.training.estimate import Division
from pipelines.training.launch import WorkerConfig
from pipelines.training.loop import LoopSettings
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recipe import LOOP_FIELDS, PriorRecipe, TokenizerRecipe

Recipe = TypeVar("Recipe", TokenizerRecipe, PriorRecipe)


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """Flags of any training run; where one is left out, the recipe's own value holds."""

    out: Path
    """the run folder: checkpoints, metrics.jsonl, TensorBoard events, samples/"""
    steps: int | None = None
    """train until this many steps are done (default: the recipe's)"""
    save_every: int | None = None
    """steps between checkpoints"""
    sample_every: int | None = None
    """steps between held-out metrics and pictures"""
    log_every: int | None = None
    """steps between lines of metrics.jsonl"""
    batch_size: int | None = None
    """samples a step, over all workers"""
    learning_rate: float | None = None
    """the highest learning rate"""
    threads: int | None = None
    """CPU threads (default: torch's own choice); losses repeat to the bit at equal threads"""
    seed: int = 0
    """decides the order of the data, the crops and the initial weights"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    accumulate: int = 1
    """micro-batches to split each batch into: less memory, the same losses"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """compile the model with torch.compile; auto does so on GPUs"""
    recompute: bool = False
    """activation checkpointing: less memory, a third slower"""
    dry_run: bool = False
    """print sizes, memory and steps per epoch, and write nothing"""
    workers: int = 0
    """processes that train together under Ray, each on its part of every batch; 0: this process"""
    address: str | None = None
    """the Ray cluster to use (default: in a Ray job its own cluster, else one started here)"""
    cpus_per_worker: int = 1
    """CPUs, and threads, of each worker"""
    restarts: int = 10
    """how often the workers may be restarted after one of them died"""


def override_recipe(
    recipes: Mapping[str, Recipe], name: str, flags: TrainingFlags, *more: str
) -> Recipe:
    """The recipe `name`, overridden by the flags given: the shared ones and those named in `more`.

    Raises ConfigError where there is no such recipe, or a count is below 1.
    """
    if name not in recipes:
        raise ConfigError(f"No recipe {name!r}; there are {', '.join(recipes)}.")
    recipe = recipes[name]
    given: dict[str, Any] = {}
    for field in (*LOOP_FIELDS, "batch_size", *more):
        value = getattr(flags, field)
        if value is not None:
            if not isinstance(value, str):
                _check_least(field, value, 1)
            given[field] = value
    if flags.learning_rate is not None:
        optimizer = dataclasses.replace(recipe.optimizer, learning_rate=flags.learning_rate)
        given["optimizer"] = optimizer
    recipe = dataclasses.replace(recipe, **given)
    _check_division(recipe.batch_size, flags)
    return recipe


def _check_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{field.replace('_', '-')} must be at least {least}, found {value}.")


def _check_division(batch_size: int, flags: TrainingFlags) -> None:
    """Raise ConfigError unless all workers' micro-batches have equally many samples."""
    for field in ("accumulate", "cpus_per_worker"):
        _check_least(field, getattr(flags, field), 1)
    for field in ("workers", "restarts"):
        _check_least(field, getattr(flags, field), 0)
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
    compiles = device.type == "cuda" and not shard
    return ParallelConfig(
        ranks=ranks,
        accumulate=flags.accumulate,
        compile=compiles if flags.compile == "auto" else flags.compile == "yes",
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
        bfloat16=gpu,
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


def loop_settings(recipe: TokenizerRecipe | PriorRecipe, seed: int) -> LoopSettings:
    """The training loop's settings of a recipe."""
    return LoopSettings(seed=seed, **{name: getattr(recipe, name) for name in LOOP_FIELDS})
