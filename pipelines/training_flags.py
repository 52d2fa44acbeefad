"""The flags that both trainers share, and how they lie over a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ops.config import ConfigError, to_json
from pipelines.recipes import PriorRecipe, TokenizerRecipe
from pipelines.training import LoopSettings

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
    """samples a step"""
    learning_rate: float | None = None
    """the highest learning rate"""
    threads: int | None = None
    """CPU threads (default: torch's own choice); losses repeat to the bit at equal threads"""
    seed: int = 0
    """names the order, the crops and the first weights"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


def lay_over(recipes: Mapping[str, Recipe], name: str, flags: TrainingFlags, *more: str) -> Recipe:
    """The recipe called `name` with the flags that were given, those named in `more` too.

    Raises ConfigError where there is no such recipe, or a count is below 1.
    """
    if name not in recipes:
        raise ConfigError(f"No recipe {name!r}; there are {', '.join(recipes)}.")
    recipe = recipes[name]
    given: dict[str, Any] = {}
    for field in (*HABITS, "batch_size", *more):
        value = getattr(flags, field)
        if value is not None and value < 1:
            raise ConfigError(f"--{field.replace('_', '-')} must be at least 1, found {value}.")
        if value is not None:
            given[field] = value
    if flags.learning_rate is not None:
        optimizer = dataclasses.replace(recipe.optimizer, learning_rate=flags.learning_rate)
        given["optimizer"] = optimizer
    return dataclasses.replace(recipe, **given)


def loop_settings(recipe: TokenizerRecipe | PriorRecipe, seed: int) -> LoopSettings:
    """How the loop runs a recipe."""
    habits = {name: getattr(recipe, name) for name in HABITS}
    return LoopSettings(seed=seed, **habits)


def lasting_settings(recipe: TokenizerRecipe | PriorRecipe, **more: Any) -> dict[str, Any]:
    """What must not change between the sittings of one run, as JSON."""
    lasting = {name: value for name, value in to_json(recipe).items() if name not in HABITS}
    return {"recipe": lasting, **more}


def use_threads(threads: int | None) -> None:
    """Let torch compute on this many threads; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def outcome(out: Path, taken: int, steps: int, next_command: str) -> str:
    """The one line a trainer ends with."""
    done = f"{taken} steps taken" if taken else "nothing left to do"
    return f"{out}: {done}, {steps} in all; {next_command}"
