"""Conversion of published priors to this package's layout: state dict in, state dict out.

CompVis' Net2NetTransformer has one table of token embeddings: a class, a condition's code or the
start token is read as the code of the same number. Here conditions have rows of their own after the
codes, so those rows are copied. Null tokens, which the published models lack, are the mean of their
condition's rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ops.checkpoint import CheckpointError
from ops.meta_device import on_meta_device
from ops.tensor_files import check_finite
from ops.text import printable
from prior.conditions import Condition, Conditions
from prior.models import GPT, GPTConfig
from prior.orderings import ORDERINGS, PUBLISHED_SEED, ROW_MAJOR

PREFIX = "transformer."  # of the GPT's keys in a whole Net2NetTransformer
PERMUTER = "permuter."  # of the keys of its code order
NOT_WEIGHTS = re.compile(r"blocks\.\d+\.attn\.mask")


def import_compvis_gpt(
    tensors: Mapping[str, Tensor], conditions: Conditions, *, window: int = 16, num_heads: int = 16
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and state dict from that of a Net2NetTransformer, or of its GPT alone.

    `conditions` are those it was trained with; `num_heads`, which no weight shows, is 16 in all
    published models. Raises CheckpointError, naming the key, for a missing or unknown key, a wrong
    shape, an order of codes that has no name here, or a mask that is not causal.
    """
    published = _gpt_tensors(tensors)
    _check_masks(published)
    config = dataclasses.replace(
        _config(published, conditions, window, num_heads), ordering=_ordering(tensors, window)
    )
    with on_meta_device():
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    table = key_table(config.num_layers)
    known = {key for keys in table.values() for key in keys} | {"tok_emb.weight", "pos_emb"}
    unknown = [key for key in published if key not in known and not NOT_WEIGHTS.fullmatch(key)]
    if unknown:
        raise CheckpointError(f"{printable(unknown[0], 100)} is not a key of the published GPT.")
    converted = {
        name: torch.cat(
            [_fetch(published, key, _part_shape(shapes[name], len(keys))) for key in keys]
        )
        for name, keys in table.items()
    }
    converted["token_embedding.weight"] = _token_table(published, conditions, config.width)
    converted["position_embedding.weight"] = _position_table(published, config)
    return config, converted


def key_table(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Our keys, each with the published keys to concatenate for it; without the two embeddings."""
    modules: dict[str, tuple[str, ...]] = {"norm": ("ln_f",)}
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        modules |= {
            f"{block}.attention_norm": (f"{block}.ln1",),
            f"{block}.attention.qkv": tuple(
                f"{block}.attn.{name}" for name in ("query", "key", "value")
            ),
            f"{block}.attention.proj": (f"{block}.attn.proj",),
            f"{block}.mlp_norm": (f"{block}.ln2",),
            f"{block}.mlp.0": (f"{block}.mlp.0",),
            f"{block}.mlp.2": (f"{block}.mlp.2",),
        }
    table = {
        f"{name}.{kind}": tuple(f"{key}.{kind}" for key in keys)
        for name, keys in modules.items()
        for kind in ("weight", "bias")
    }
    return {**table, "head.weight": ("head.weight",)}


def _gpt_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The GPT's tensors without PREFIX; those of the autoencoders around it are left out."""
    inside = {
        key.removeprefix(PREFIX): tensor
        for key, tensor in tensors.items()
        if key.startswith(PREFIX)
    }
    return inside or dict(tensors)


def _config(
    published: Mapping[str, Tensor], conditions: Conditions, window: int, num_heads: int
) -> GPTConfig:
    layers = [
        int(match[1]) for key in published if (match := re.match(r"blocks\.(\d{1,6})\.", key))
    ]
    embedding = published.get("tok_emb.weight")
    if embedding is None or embedding.ndim != 2 or not layers:
        raise CheckpointError("Not a published GPT: there is no tok_emb.weight, or no blocks.")
    return GPTConfig(
        codebook_size=conditions.codebook_size,
        condition_vocab_size=conditions.vocab_size,
        condition_length=conditions.length + conditions.num_grids * window**2,
        window=window,
        num_layers=max(layers) + 1,
        num_heads=num_heads,
        width=embedding.shape[1],
    )


def _fetch(published: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in published:
        raise CheckpointError(f"{key} is missing.")
    if tuple(published[key].shape) != shape:
        raise CheckpointError(f"{key} is {tuple(published[key].shape)}, expected {shape}.")
    if not published[key].is_floating_point():
        raise CheckpointError(f"{key} is {published[key].dtype}, not floating point.")
    check_finite(key, published[key].float())  # as it will be used
    return published[key]


def _part_shape(shape: torch.Size, count: int) -> tuple[int, ...]:
    """The shape of each of `count` tensors that concatenate to `shape`."""
    return (shape[0] // count, *shape[1:])


def _token_table(published: Mapping[str, Tensor], conditions: Conditions, width: int) -> Tensor:
    shared = _fetch(published, "tok_emb.weight", (conditions.codebook_size, width))
    return torch.cat([shared, *(_condition_rows(shared, part) for part in conditions.parts)])


def _condition_rows(shared: Tensor, part: Condition) -> Tensor:
    """A condition's rows (its vocab_size, width), from the published table shared with the codes.

    A condition's tokens count from 0, as in the published model, and end with a null token, which
    that model lacks. A condition with one token only is the published start token, 0.
    """
    if part.vocab_size == 1:
        return shared[:1]
    num_used = part.vocab_size - 1
    if num_used > len(shared):
        raise CheckpointError(
            f"tok_emb.weight has {len(shared)} rows, too few for the condition "
            f"{part.name!r} with {num_used} tokens."
        )
    return torch.cat([shared[:num_used], shared[:num_used].mean(dim=0, keepdim=True)])


def _position_table(published: Mapping[str, Tensor], config: GPTConfig) -> Tensor:
    """Position embeddings (num_positions, width); rows beyond a window's sequence are left out.

    The window's last code is never read. Some models have no row for it: then it is zeros.
    """
    table = published.get("pos_emb")
    longest = table.shape[1] if table is not None and table.ndim == 3 else 0
    rows = _fetch(published, "pos_emb", (1, longest, config.width))[0, : config.num_positions]
    if len(rows) < config.num_positions - 1:
        raise CheckpointError(
            f"pos_emb has {longest} rows, but {config.condition_length} condition tokens and a "
            f"window of {config.window}x{config.window} codes need {config.num_positions - 1}."
        )
    missing = rows.new_zeros(config.num_positions - len(rows), config.width)
    return torch.cat([rows, missing])


def _check_masks(published: Mapping[str, Tensor]) -> None:
    for key in filter(NOT_WEIGHTS.fullmatch, published):
        mask = published[key] != 0
        if mask.ndim < 2 or not torch.equal(mask, torch.ones_like(mask).tril()):
            raise CheckpointError(f"{key} is not a causal mask; only causal models are supported.")


def _ordering(tensors: Mapping[str, Tensor], window: int) -> str:
    """The name of the order in which the model predicts a window's codes.

    The published model stores it and its inverse as buffers, except for raster order.
    """
    buffers = {key: order for key, order in tensors.items() if key.startswith(PERMUTER)}
    if not buffers:
        return ROW_MAJOR
    for name in ORDERINGS:
        cells = torch.from_numpy(ORDERINGS[name](window, window, PUBLISHED_SEED))
        known = {"forward_shuffle_idx": cells, "backward_shuffle_idx": cells.argsort()}
        if all(_is_order(order, known.get(key[len(PERMUTER) :])) for key, order in buffers.items()):
            return name
    raise CheckpointError(
        f"{next(iter(buffers))} is an order of codes that has no name here for a window of "
        f"{window}x{window}; known are {', '.join(ORDERINGS)}."
    )


def _is_order(found: Tensor, expected: Tensor | None) -> bool:
    return expected is not None and torch.equal(found.long(), expected)
