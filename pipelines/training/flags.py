"""The flags that both trainers share, and how they lie over a recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from ops.config import ConfigError, to_json
from ops.files import write_json
from ops.ranks import Ranks
from pipelines.training.estimate import Division
from pipelines.training.launch import WorkerConfig
from pipelines.training.loop import LoopSettings, TrainingError
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recipe import PriorRecipe, TokenizerRecipe

Recipe = TypeVar("Recipe", TokenizerRecipe, PriorRecipe)
HABITS = ("steps", "save_every", "sample_every", "log_every")  # may change while a run lasts


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """What any training run can be told; a flag left out leaves the recipe's own value."""

    out: Path
    """the run folder: checkpoints, metrics.jsonl, TensorBoard events, samples/"""
    steps: int | None = None
    """train until this many steps are done (default: the recipe's)"""
    save_every: int | None = None
    """steps between checkpoints"""
    sample_every: int | None = None
    """steps between held-out figures and pictures"""
    log_every: int | None = None
    """steps between lines of metrics.jsonl"""
    batch_size: int | None = None
    """samples a step, over all workers"""
    learning_rate: float | None = None
    """the highest learning rate"""
    threads: int | None = None
    """CPU threads (default: torch's own choice); losses repeat to the bit at equal threads"""
    seed: int = 0
    """names the order, the crops and the first weights"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    accumulate: int = 1
    """parts to go through a batch in, one after the other: less memory, the same losses"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """compile the model with torch.compile; auto does so on GPUs"""
    recompute: bool = False
    """keep less of each block and compute it again for its gradient: less memory, a third slower"""
    dry_run: bool = False
    """print sizes, memory and steps an epoch, and leave everything as it is"""
    workers: int = 0
    """processes that train together under Ray, each on its part of every batch; 0: this one"""
    address: str | None = None
    """the Ray cluster to use (default: in a Ray job its own cluster, else one started here)"""
    cpus_per_worker: int = 1
    """CPUs, and threads, of each worker"""
    restarts: int = 10
    """how often the workers may be started again after one of them died"""


def override_recipe(
    recipes: Mapping[str, Recipe], name: str, flags: TrainingFlags, *more: str
) -> Recipe:
    """The recipe called `name` with the flags that were given, those named in `more` too.

    Raises ConfigError where there is no such recipe, or a count is below 1.
    """
    if name not in recipes:
        raise ConfigError(f"No recipe {name!r}; there are {', '.join(recipes)}.")
    recipe = recipes[name]
    given: dict[str, Any] = {}
    for field in (*HABITS, "batch_size", *more):
        value = getattr(flags, field)
        if value is not None:
            if not isinstance(value, str):
                _check_least(field, value, 1)
            given[field] = value
    if flags.learning_rate is not None:
        optimizer = dataclasses.replace(recipe.optimizer, learning_rate=flags.learning_rate)
        given["optimizer"] = optimizer
    laid = dataclasses.replace(recipe, **given)
    _check_division(laid.batch_size, flags)
    return laid


def _check_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{field.replace('_', '-')} must be at least {least}, found {value}.")


def _check_division(batch_size: int, flags: TrainingFlags) -> None:
    """Every worker, and every part that it goes through at once, must have equally many samples."""
    for field in ("accumulate", "cpus_per_worker"):
        _check_least(field, getattr(flags, field), 1)
    for field in ("workers", "restarts"):
        _check_least(field, getattr(flags, field), 0)
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers: how many processes shall train there?")
    parts = flags.accumulate * max(1, flags.workers)
    if batch_size % parts:
        raise ConfigError(
            f"A batch of {batch_size} samples does not divide evenly by {parts} (--workers times "
            f"--accumulate). Use --batch-size {-(-batch_size // parts) * parts}, or other numbers."
        )


def parallel_config_of(
    flags: TrainingFlags, ranks: Ranks, device: torch.device, shard: bool = False
) -> ParallelConfig:
    """How a process that trains on `device` computes its steps."""
    compiles = device.type == "cuda" and not shard
    return ParallelConfig(
        ranks=ranks,
        accumulate=flags.accumulate,
        compile=compiles if flags.compile == "auto" else flags.compile == "yes",
        recompute=flags.recompute,
        shard=shard,
    )


def division_of(flags: TrainingFlags, shard: bool = False) -> Division:
    """How a batch will be divided, as far as it can be known here."""
    gpu = flags.device.startswith("cuda") or (flags.device == "auto" and torch.cuda.is_available())
    return Division(
        workers=max(1, flags.workers),
        accumulate=flags.accumulate,
        recompute=flags.recompute,
        shard=shard,
        half=gpu,
    )


def worker_config_of(flags: TrainingFlags) -> WorkerConfig:
    """The processes that the flags ask for."""
    return WorkerConfig(
        workers=flags.workers,
        address=flags.address,
        cpus_per_worker=flags.cpus_per_worker,
        device=flags.device,
        restarts=flags.restarts,
    )


def loop_settings(recipe: TokenizerRecipe | PriorRecipe, seed: int) -> LoopSettings:
    """How the loop runs a recipe."""
    habits = {name: getattr(recipe, name) for name in HABITS}
    return LoopSettings(seed=seed, **habits)


def lasting_settings(recipe: TokenizerRecipe | PriorRecipe, **more: Any) -> dict[str, Any]:
    """What must not change between the sittings of one run, as JSON."""
    lasting = {name: value for name, value in to_json(recipe).items() if name not in HABITS}
    return {"recipe": lasting, **more}


def pin_settings(run: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings` to run.json of a new run; in an old one, insist that they are the same.

    Raises TrainingError naming what differs: a run resumed otherwise would be neither of the two.
    """
    path, current = run / "run.json", json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, current)
        return
    before = json.loads(path.read_text())
    names = sorted(set(before) | set(current))
    differing = [
        f"{name} was {before.get(name)!r}, is {current.get(name)!r}"
        for name in names
        if before.get(name) != current.get(name)
    ]
    if differing:
        raise TrainingError(
            f"{run} was started with other settings: {'; '.join(differing)}. "
            "Use the same settings to go on, or another --out."
        )


def use_threads(threads: int | None) -> None:
    """Let torch compute on this many threads; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def outcome(out: Path, taken: int, steps: int, next_command: str) -> str:
    """The one line a trainer ends with."""
    done = f"{taken} steps taken" if taken else "nothing left to do"
    return f"{out}: {done}, {steps} in all; {next_command}"
