"""Published checkpoints as model folders: tokenizers, and transformers with their tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ops.checkpoint import CheckpointError
from ops.config import ConfigError, UserError
from ops.files import atomic_path
from ops.meta_device import on_meta_device
from ops.published import load_published
from pipelines.conditioning import tokenizer_info
from pipelines.flags import ImportPriorFlags, ImportTokenizerFlags
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
from tokenizer import FIRST_STAGE, IMPORTERS, VQGAN, load_tokenizer, save_tokenizer

M = TypeVar("M")
Tensors = Mapping[str, Tensor]
CONDITION_STAGE = "cond_stage_model."


def import_tokenizer(flags: ImportTokenizerFlags) -> str:
    """Write the model folder of a published tokenizer; the line to print.

    Raises CheckpointError for files of another kind, UserError where --out holds something else.
    """
    tensors = load_published(flags.file)
    model = published_tokenizer(flags.kind, tensors, flags.norm_groups, flags.out.name)
    config = model.config
    write_once(flags.out, model, load=load_tokenizer, equal=_equal_tokenizers, save=save_tokenizer)
    return (
        f"{flags.out}: f {config.downsample_factor}, {config.codebook_size} codes of "
        f"{config.quantizer.kind}, fingerprint {model.fingerprint}; encode with "
        f"python -m pipelines.encode --tokenizer {flags.out}"
    )


def import_prior(flags: ImportPriorFlags) -> str:
    """Write the model folder of a published transformer, with its tokenizer; the line to print.

    Raises CheckpointError for files of another kind, ConfigError for conditions that cannot be
    imported or a missing tokenizer, UserError where --out holds something else.
    """
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

    write_once(flags.out, prior, load=load_prior, equal=_equal_priors, save=save)
    config = prior.config
    return (
        f"{flags.out}: {len(prior.model.blocks)} layers of {config.width}, "
        f"{config.codebook_size} codes of tokenizer {tokenizer.fingerprint}; sample with "
        f"python -m pipelines.generate --prior {flags.out}"
    )


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
    with on_meta_device():
        model = GPT(config)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return model, conditions


def published_tokenizer(kind: str, tensors: Tensors, norm_groups: int, name: str) -> VQGAN:
    """The tokenizer `name` from published tensors of a family, in evaluation mode.

    Raises CheckpointError for tensors that are not such a tokenizer's.
    """
    config, weights = IMPORTERS[kind](tensors, norm_groups)
    with on_meta_device():
        model = VQGAN(config, name=name)
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(weights)
    return model


def write_once(
    folder: Path,
    model: M,
    *,
    load: Callable[[Path], M],
    equal: Callable[[M, M], bool],
    save: Callable[[Path, M], None],
) -> None:
    """Save `model` as `folder`; do nothing if `folder` holds an equal one already.

    Raises UserError if it holds anything else.
    """
    if not folder.exists():
        with atomic_path(folder) as partial:
            save(partial, model)
        return
    try:
        if equal(load(folder), model):
            return
    except CheckpointError:
        pass
    raise UserError(f"{folder} exists and holds something else. Give another --out, or remove it.")


def _equal_tokenizers(one: VQGAN, other: VQGAN) -> bool:
    return one.config == other.config and _equal_weights(one, other)


def _equal_priors(one: Prior, other: Prior) -> bool:
    return (
        one.config == other.config
        and one.conditions.parts == other.conditions.parts
        and one.tokenizer_info == other.tokenizer_info
        and _equal_weights(one.model, other.model)
    )


def _equal_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one architecture have the same parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)
