#!/usr/bin/env python3
"""Convert a published tokenizer to a model folder.

python -m pipelines.import_tokenizer KIND FILE --out DIR

The folder can be given to every command that takes a tokenizer. Run again, it does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
import tyro
from torch import Tensor, nn

from ops.checkpoint import CheckpointError
from ops.config import UserError
from ops.files import atomic_path
from ops.published import load_published
from pipelines.console import run_command
from tokenizer import IMPORTERS, VQGAN, load_tokenizer, save_tokenizer

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class ImportTokenizerFlags:
    """Turn a published VQGAN into a model folder."""

    kind: tyro.conf.Positional[
        Annotated[Literal["compvis", "llamagen", "diffusers"], tyro.conf.arg()]
    ]
    """whose format: taming-transformers and latent diffusion, LlamaGen, or diffusers' VQModel"""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """a .safetensors file or a torch checkpoint, of which only the tensors are read"""
    out: Path
    """the model folder to write"""
    norm_groups: int = 32
    """groups of the group norms, which cannot be read from the weights; 32 in all published ones"""


def run(flags: ImportTokenizerFlags) -> int:
    tensors = load_published(flags.file)
    model = published_tokenizer(flags.kind, tensors, flags.norm_groups, flags.out.name)
    config = model.config
    write_once(flags.out, model, load=load_tokenizer, equal=_equal, save=save_tokenizer)
    print(
        f"{flags.out}: f {config.downsample_factor}, {config.codebook_size} codes of "
        f"{config.quantizer.kind}, fingerprint {model.fingerprint}; encode with "
        f"python -m pipelines.encode --tokenizer {flags.out}"
    )
    return 0


def published_tokenizer(
    kind: str, tensors: Mapping[str, Tensor], norm_groups: int, name: str
) -> VQGAN:
    """The tokenizer `name` from published tensors of a family, in evaluation mode.

    Raises CheckpointError for tensors that are not such a tokenizer's.
    """
    config, weights = IMPORTERS[kind](tensors, norm_groups)
    with torch.device("meta"):
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


def equal_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one architecture have the same parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def _equal(one: VQGAN, other: VQGAN) -> bool:
    return one.config == other.config and equal_weights(one, other)


def main(argv: list[str] | None = None) -> int:
    return run_command(ImportTokenizerFlags, run, argv, "pipelines.import_tokenizer")


if __name__ == "__main__":
    sys.exit(main())
