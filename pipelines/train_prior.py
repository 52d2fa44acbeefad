#!/usr/bin/env python
"""Train a prior on a code store: python -m pipelines.train_prior RECIPE --codes STORE --out RUN.

Streams the store's memory-mapped shards; run again, it goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ops.config import ConfigError
from ops.files import atomic_path
from ops.runtime import resolve_device
from pipelines.code_dataset import CodeDataset
from pipelines.command_line import run_command
from pipelines.prior_trainee import PriorTrainee
from pipelines.recipes import PRIOR_RECIPES, PriorRecipe
from pipelines.store import CodeStore
from pipelines.training import TrainingError, pin_settings, train
from pipelines.training_flags import (
    TrainingFlags,
    lasting_settings,
    lay_over,
    loop_settings,
    outcome,
    use_threads,
)
from prior import (
    CONDITIONS,
    GPT,
    PRESETS,
    ClassLabel,
    Conditions,
    GPTConfig,
    StartOfSequence,
    start_alike,
)
from tokenizer import VQGAN, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainPriorFlags(TrainingFlags):
    """Train a transformer prior on a code store, and resume where an earlier run stopped."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, base or large: see pipelines/recipes.py"""
    codes: Path
    """the store that pipelines.encode wrote"""
    conditions: tuple[str, ...] = ("sos",)
    """what the prior is told: sos (nothing) or class (the sub-folder an image lay in)"""
    window: int | None = None
    """codes a side of the square that the prior sees at once"""
    held_out: float = 0.05
    """share of the images, by key, that measure instead of train"""


def make_conditions(names: tuple[str, ...], store: CodeStore) -> Conditions:
    """The prefix that `names` stand for, sized for the store."""
    codebook_size = store.provenance["image"]["codebook_size"]
    parts: list[Any] = []
    for name in names:
        if CONDITIONS[name] is ClassLabel:
            if not store.label_names:
                raise ConfigError(
                    f"{store.path} has no classes: its images lay in no sub-folders. "
                    "Train with --conditions sos."
                )
            parts.append(
                ClassLabel(num_classes=len(store.label_names), label_names=tuple(store.label_names))
            )
        else:
            parts.append(StartOfSequence())
    return Conditions(parts, codebook_size)


def make_model(recipe: PriorRecipe, conditions: Conditions, tokenizer: VQGAN, seed: int) -> GPT:
    """An untrained GPT of the recipe's preset for these codes and conditions."""
    config = GPTConfig(
        codebook_size=conditions.codebook_size,
        condition_vocab_size=conditions.vocab_size,
        condition_length=conditions.length,
        window=recipe.window,
        dropout=recipe.dropout,
        **PRESETS[recipe.preset],
    )
    torch.manual_seed(seed)
    model = GPT(config)
    if recipe.start_alike:
        every_code = torch.arange(config.codebook_size).view(1, 1, -1)
        start_alike(model, tokenizer.quantizer.lookup(every_code)[0, :, 0].T)
    return model


def keep_tokenizer(run: Path, store: CodeStore) -> VQGAN:
    """The store's tokenizer, copied into the run so that generate needs the run alone."""
    folder = run / "tokenizer"
    if not folder.exists():
        with atomic_path(folder) as partial:
            shutil.copytree(store.tokenizer_folder, partial)
    kept, made = load_tokenizer(folder), store.provenance["image"]["fingerprint"]
    if kept.fingerprint != made:
        raise TrainingError(
            f"{store.path} was encoded by tokenizer {made}, but {run} was trained on codes of "
            f"{kept.fingerprint}. Name the store it was trained on, or another --out."
        )
    return kept


def tokenizer_info(tokenizer: VQGAN) -> dict[str, Any]:
    """What a prior remembers of the tokenizer whose codes it speaks."""
    return {
        "name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }


def run(flags: TrainPriorFlags) -> int:
    use_threads(flags.threads)
    recipe = lay_over(PRIOR_RECIPES, flags.recipe, flags, "window")
    device = resolve_device(flags.device)
    store = CodeStore.open(flags.codes)
    conditions = make_conditions(flags.conditions, store)
    dataset = CodeDataset(
        store,
        window=recipe.window,
        batch_size=recipe.batch_size,
        seed=flags.seed,
        held_out_share=flags.held_out,
    )
    tokenizer = keep_tokenizer(flags.out, store)
    lasting = lasting_settings(
        recipe, conditions=conditions.to_json(), held_out=flags.held_out, seed=flags.seed
    )
    pin_settings(flags.out, lasting)
    trainee = PriorTrainee(
        make_model(recipe, conditions, tokenizer, flags.seed),
        conditions,
        tokenizer,
        tokenizer_info(tokenizer),
        recipe,
        steps=recipe.steps,
        seed=flags.seed,
        held_out=dataset.held_out_batches(),
        device=device,
    )
    taken = train(trainee, dataset.train_batch, flags.out, loop_settings(recipe, flags.seed))
    print(outcome(flags.out, taken, recipe.steps, "paint with python -m pipelines.generate"))
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(TrainPriorFlags, run, argv, "pipelines.train_prior")


if __name__ == "__main__":
    sys.exit(main())
