#!/usr/bin/env python3
"""Published weights as a prior of ours: python -m pipelines.import_prior compvis FILE --out DIR.

The result is a model folder with the prior's tokenizer in it, ready for generate and evaluate. Run
again, it does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from ops.checkpoint import CheckpointError
from ops.config import ConfigError, UserError
from ops.files import atomic_path
from ops.published import load_published
from pipelines.console import run_command
from pipelines.import_tokenizer import published_tokenizer
from pipelines.train_prior import tokenizer_info
from prior import (
    GPT,
    ClassLabel,
    Conditions,
    Coordinates,
    Prior,
    StartOfSequence,
    import_compvis_gpt,
    load_prior,
    save_prior,
)
from prior.conditions import Condition
from tokenizer import FIRST_STAGE, VQGAN, load_tokenizer, save_tokenizer

Tensors = Mapping[str, Tensor]
CONDITION_STAGE = "cond_stage_model."


@dataclass(frozen=True, kw_only=True)
class ImportPriorFlags:
    """Turn a published transformer into a model folder."""

    kind: tyro.conf.Positional[Annotated[Literal["compvis"], tyro.conf.arg()]]
    """whose weights: compvis is the Net2NetTransformer of taming-transformers, or its GPT alone"""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """a .safetensors file, or a checkpoint of torch; nothing but its tensors is looked at"""
    out: Path
    """the model folder to write"""
    num_classes: int | None = None
    """classes that it was told (1000 for ImageNet); without them it is unconditional"""
    conditions: Literal["coordinates"] | None = None
    """coordinates: it was told where in the picture each code lies, as models of windows were"""
    window: int = 16
    """codes a side of the square that it sees; 16 in all that have been published"""
    num_heads: int = 16
    """heads of its attention, which no weight shows; 16 in all that have been published"""
    tokenizer: str | None = None
    """name or model folder of the tokenizer it was trained with (default: the one in FILE)"""
    norm_groups: int = 32
    """groups of the group norms of the tokenizer in FILE; 32 in all that have been published"""


def run(flags: ImportPriorFlags) -> int:
    tensors = load_published(flags.file)
    if any(key.startswith(CONDITION_STAGE) for key in tensors):
        raise ConfigError(
            f"{flags.file} was trained with pictures as its condition ({CONDITION_STAGE}*). "
            "Models told nothing, a class or coordinates can be imported."
        )
    tokenizer = tokenizer_of(flags, tensors)
    prior = Prior(*model_of(flags, tensors, tokenizer), tokenizer_info(tokenizer))
    if not _is_there(flags.out, prior):
        with atomic_path(flags.out) as partial:
            save_prior(partial, prior.model, prior.conditions, prior.tokenizer_info)
            save_tokenizer(partial / "tokenizer", tokenizer)
    config = prior.config
    print(
        f"{flags.out}: {len(prior.model.blocks)} layers of {config.width}, "
        f"{config.codebook_size} codes of tokenizer {tokenizer.fingerprint}; paint with "
        f"python -m pipelines.generate --prior {flags.out}"
    )
    return 0


def tokenizer_of(flags: ImportPriorFlags, tensors: Tensors) -> VQGAN:
    """The tokenizer that was asked for, or the one that lies around the transformer."""
    if flags.tokenizer is not None:
        return load_tokenizer(flags.tokenizer)
    if not any(key.startswith(FIRST_STAGE) for key in tensors):
        raise ConfigError(
            f"{flags.file} holds no tokenizer ({FIRST_STAGE}*). Name the one that the transformer "
            "was trained with by --tokenizer; python -m pipelines.import_tokenizer makes one of "
            "its weights."
        )
    return published_tokenizer("compvis", tensors, flags.norm_groups, flags.file.stem)


def model_of(flags: ImportPriorFlags, tensors: Tensors, tokenizer: VQGAN) -> tuple[GPT, Conditions]:
    """The transformer, and what it is told."""
    if flags.num_classes is not None and flags.conditions is not None:
        raise ConfigError("Published models are told classes or coordinates; leave one out.")
    size = tokenizer.config.codebook_size
    condition: Condition = StartOfSequence()
    if flags.num_classes is not None:
        condition = ClassLabel(num_classes=flags.num_classes)
    elif flags.conditions is not None:
        factor = tokenizer.config.downsample_factor
        condition = Coordinates(codebook_size=size, downsample_factor=factor)
    conditions = Conditions([condition], size)
    config, weights = import_compvis_gpt(
        tensors, conditions, window=flags.window, num_heads=flags.num_heads
    )
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return model, conditions


def _is_there(folder: Path, prior: Prior) -> bool:
    """Whether `folder` holds this very prior; raises UserError where it holds anything else."""
    if not folder.exists():
        return False
    try:
        there = load_prior(folder)
    except CheckpointError:
        there = None
    if there is None or not _equal(there, prior):
        raise UserError(f"{folder} exists and is another thing. Name another --out, or remove it.")
    return True


def _equal(one: Prior, other: Prior) -> bool:
    described = one.config == other.config and one.conditions.parts == other.conditions.parts
    if not described or one.tokenizer_info != other.tokenizer_info:
        return False
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def main(argv: list[str] | None = None) -> int:
    return run_command(ImportPriorFlags, run, argv, "pipelines.import_prior")


if __name__ == "__main__":
    sys.exit(main())
