"""Published priors in our own layout: tensors in, tensors out, no files.

CompVis' Net2NetTransformer keeps one table of tokens: a class, a condition's code or the start
token is read as the code of that number. Ours has a part for conditions behind the codes, so those
rows are there twice. What we add, a token that tells nothing, is the mean of a condition's rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ops.checkpoint import CheckpointError
from prior.conditions import Condition, Conditions
from prior.models import GPT, GPTConfig
from prior.orderings import ORDERINGS, PUBLISHED_SEED, ROW_MAJOR

PREFIX = "transformer."  # where a whole Net2NetTransformer has its GPT
PERMUTER = "permuter."  # and where the order of its codes
NOT_WEIGHTS = re.compile(r"blocks\.\d+\.attn\.mask")


def import_compvis_gpt(
    tensors: Mapping[str, Tensor], conditions: Conditions, *, window: int = 16, num_heads: int = 16
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and state dict of the GPT in a Net2NetTransformer's state dict, or in its GPT's own.

    `conditions` are those it was trained with; `num_heads`, which no weight shows, is 16 in all
    published models. Raises CheckpointError naming the key that is missing, unknown or misshapen,
    and where the model reads its codes in an order without a name, or sees ahead.
    """
    theirs = _of_the_gpt(tensors)
    _check_masks(theirs)
    config = dataclasses.replace(
        _config(theirs, conditions, window, num_heads), ordering=_ordering(tensors, window)
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    table = key_table(config.num_layers)
    known = {key for keys in table.values() for key in keys} | {"tok_emb.weight", "pos_emb"}
    unknown = [key for key in theirs if key not in known and not NOT_WEIGHTS.fullmatch(key)]
    if unknown:
        raise CheckpointError(f"{unknown[0]} is no key of the published GPT.")
    ours = {
        name: torch.cat([_fetch(theirs, key, _part(shapes[name], len(keys))) for key in keys])
        for name, keys in table.items()
    }
    ours["token_embedding.weight"] = _token_table(theirs, conditions, config.width)
    ours["position_embedding.weight"] = _position_table(theirs, config)
    return config, ours


def key_table(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Our keys, each with theirs in the order they are stacked; all but the two embeddings."""
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


def _of_the_gpt(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The GPT's tensors by its own keys; the autoencoders' around it are left out."""
    inside = {
        key.removeprefix(PREFIX): tensor
        for key, tensor in tensors.items()
        if key.startswith(PREFIX)
    }
    return inside or dict(tensors)


def _config(
    theirs: Mapping[str, Tensor], conditions: Conditions, window: int, num_heads: int
) -> GPTConfig:
    layers = [int(match[1]) for key in theirs if (match := re.match(r"blocks\.(\d+)\.", key))]
    if "tok_emb.weight" not in theirs or not layers:
        raise CheckpointError("This is no published GPT: it has no tok_emb.weight, or no blocks.")
    return GPTConfig(
        codebook_size=conditions.codebook_size,
        condition_vocab_size=conditions.vocab_size,
        condition_length=conditions.length + conditions.num_grids * window**2,
        window=window,
        num_layers=max(layers) + 1,
        num_heads=num_heads,
        width=theirs["tok_emb.weight"].shape[-1],
    )


def _fetch(theirs: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in theirs:
        raise CheckpointError(f"{key} is missing.")
    if tuple(theirs[key].shape) != shape:
        raise CheckpointError(f"{key} is {tuple(theirs[key].shape)}, expected {shape}.")
    return theirs[key]


def _part(shape: torch.Size, count: int) -> tuple[int, ...]:
    """The shape of each of `count` tensors that stacked make one of `shape`."""
    return (shape[0] // count, *shape[1:])


def _token_table(theirs: Mapping[str, Tensor], conditions: Conditions, width: int) -> Tensor:
    shared = _fetch(theirs, "tok_emb.weight", (conditions.codebook_size, width))
    return torch.cat([shared, *(_condition_rows(shared, part) for part in conditions.parts)])


def _condition_rows(shared: Tensor, part: Condition) -> Tensor:
    """A condition's rows (its vocab_size, width) of the table they share with the codes.

    A condition that tells something counts from 0 as theirs does, and then has its null token,
    which theirs lack; the only token of one that tells nothing is their start token, 0.
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


def _position_table(theirs: Mapping[str, Tensor], config: GPTConfig) -> Tensor:
    """Our places' rows; those for sequences longer than a window are left out.

    The window's last code is never read, and some models have no row for it: it becomes zeros.
    """
    longest = theirs["pos_emb"].shape[1] if "pos_emb" in theirs else 0
    rows = _fetch(theirs, "pos_emb", (1, longest, config.width))[0, : config.num_positions]
    if len(rows) < config.num_positions - 1:
        raise CheckpointError(
            f"pos_emb has {longest} rows, but {config.condition_length} condition tokens and a "
            f"window of {config.window}x{config.window} codes need {config.num_positions - 1}."
        )
    missing = rows.new_zeros(config.num_positions - len(rows), config.width)
    return torch.cat([rows, missing])


def _check_masks(theirs: Mapping[str, Tensor]) -> None:
    for key in filter(NOT_WEIGHTS.fullmatch, theirs):
        seen = theirs[key] != 0
        if not torch.equal(seen, torch.ones_like(seen).tril()):
            raise CheckpointError(f"{key} lets tokens see ahead; ours see what came before only.")


def _ordering(tensors: Mapping[str, Tensor], window: int) -> str:
    """The name of the order in which the model foretells a window's codes.

    The published model keeps it, and its inverse, as buffers, but where it is row by row.
    """
    there = {key: order for key, order in tensors.items() if key.startswith(PERMUTER)}
    if not there:
        return ROW_MAJOR
    for name in ORDERINGS:
        cells = torch.from_numpy(ORDERINGS[name](window, window, PUBLISHED_SEED))
        known = {"forward_shuffle_idx": cells, "backward_shuffle_idx": cells.argsort()}
        if all(_is_order(order, known.get(key[len(PERMUTER) :])) for key, order in there.items()):
            return name
    raise CheckpointError(
        f"{next(iter(there))} is an order of codes that has no name here for a window of {window}x"
        f"{window}; there are {', '.join(ORDERINGS)}."
    )


def _is_order(found: Tensor, expected: Tensor | None) -> bool:
    return expected is not None and torch.equal(found.long(), expected)
