#!/usr/bin/env python3
"""Convert a published transformer to a model folder with its tokenizer.

python -m pipelines.import_prior compvis FILE --out DIR

The folder can be given to generate and evaluate. Run again, it does nothing.
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

from ops.config import ConfigError
from ops.published import load_published
from pipelines.console import run_command
from pipelines.import_tokenizer import equal_weights, published_tokenizer, write_once
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
    """whose format: compvis is the Net2NetTransformer of taming-transformers, or its GPT alone"""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """a .safetensors file or a torch checkpoint, of which only the tensors are read"""
    out: Path
    """the model folder to write"""
    num_classes: int | None = None
    """number of classes it is conditioned on (1000 for ImageNet); default: unconditional"""
    conditions: Literal["coordinates"] | None = None
    """coordinates: it is conditioned on each code's position in the image, as window models are"""
    window: int = 16
    """side of its window, in codes; 16 in all published models"""
    num_heads: int = 16
    """attention heads, which cannot be read from the weights; 16 in all published models"""
    tokenizer: str | None = None
    """name or model folder of the tokenizer it was trained with (default: the one in FILE)"""
    norm_groups: int = 32
    """groups of the group norms of the tokenizer in FILE; 32 in all published ones"""


def run(flags: ImportPriorFlags) -> int:
    tensors = load_published(flags.file)
    if any(key.startswith(CONDITION_STAGE) for key in tensors):
        raise ConfigError(
            f"{flags.file} was trained with images as its condition ({CONDITION_STAGE}*). Only "
            "unconditional models and those with a class or coordinates can be imported."
        )
    tokenizer = tokenizer_of(flags, tensors)
    prior = Prior(*model_of(flags, tensors, tokenizer), tokenizer_info(tokenizer))

    def save(folder: Path, prior: Prior) -> None:
        save_prior(folder, prior.model, prior.conditions, prior.tokenizer_info)
        save_tokenizer(folder / "tokenizer", tokenizer)

    write_once(flags.out, prior, load=load_prior, equal=_equal, save=save)
    config = prior.config
    print(
        f"{flags.out}: {len(prior.model.blocks)} layers of {config.width}, "
        f"{config.codebook_size} codes of tokenizer {tokenizer.fingerprint}; sample with "
        f"python -m pipelines.generate --prior {flags.out}"
    )
    return 0


def tokenizer_of(flags: ImportPriorFlags, tensors: Tensors) -> VQGAN:
    """The tokenizer given by --tokenizer, or the one in the transformer's checkpoint."""
    if flags.tokenizer is not None:
        return load_tokenizer(flags.tokenizer)
    if not any(key.startswith(FIRST_STAGE) for key in tensors):
        raise ConfigError(
            f"{flags.file} holds no tokenizer ({FIRST_STAGE}*). Give the one that the transformer "
            "was trained with by --tokenizer; python -m pipelines.import_tokenizer converts its "
            "weights."
        )
    return published_tokenizer("compvis", tensors, flags.norm_groups, flags.file.stem)


def model_of(flags: ImportPriorFlags, tensors: Tensors, tokenizer: VQGAN) -> tuple[GPT, Conditions]:
    """The transformer and its conditions."""
    if flags.num_classes is not None and flags.conditions is not None:
        raise ConfigError(
            "Published models have classes or coordinates; leave out one of the flags."
        )
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


def _equal(one: Prior, other: Prior) -> bool:
    return (
        one.config == other.config
        and one.conditions.parts == other.conditions.parts
        and one.tokenizer_info == other.tokenizer_info
        and equal_weights(one.model, other.model)
    )


def main(argv: list[str] | None = None) -> int:
    return run_command(ImportPriorFlags, run, argv, "pipelines.import_prior")


if __name__ == "__main__":
    sys.exit(main())
