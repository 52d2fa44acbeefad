#!/usr/bin/env python3
"""Published weights as a tokenizer of ours: python -m pipelines.import_tokenizer KIND FILE --out.

The result is a model folder that encode, decode and train_prior take. Run again, it does nothing.
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
from ops.config import UserError
from ops.files import atomic_path
from ops.published import load_published
from pipelines.console import run_command
from tokenizer import IMPORTERS, VQGAN, load_tokenizer, save_tokenizer


@dataclass(frozen=True, kw_only=True)
class ImportTokenizerFlags:
    """Turn a published VQGAN into a model folder."""

    kind: tyro.conf.Positional[
        Annotated[Literal["compvis", "llamagen", "diffusers"], tyro.conf.arg()]
    ]
    """whose weights: taming-transformers and latent diffusion, LlamaGen, diffusers' VQModel"""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """a .safetensors file, or a checkpoint of torch; nothing but its tensors is looked at"""
    out: Path
    """the model folder to write"""
    norm_groups: int = 32
    """groups of the group norms, which no weight shows; 32 in all that have been published"""


def run(flags: ImportTokenizerFlags) -> int:
    tensors = load_published(flags.file)
    model = published_tokenizer(flags.kind, tensors, flags.norm_groups, flags.out.name)
    config = model.config
    if not _is_there(flags.out, model):
        with atomic_path(flags.out) as partial:
            save_tokenizer(partial, model)
    print(
        f"{flags.out}: f {config.downsample_factor}, {config.codebook_size} codes of "
        f"{config.quantizer.kind}, fingerprint {model.fingerprint}; encode with "
        f"python -m pipelines.encode --tokenizer {flags.out}"
    )
    return 0


def published_tokenizer(
    kind: str, tensors: Mapping[str, Tensor], norm_groups: int, name: str
) -> VQGAN:
    """The tokenizer called `name` that a family's published tensors are, ready to encode.

    Raises CheckpointError where they are none.
    """
    config, weights = IMPORTERS[kind](tensors, norm_groups)
    with torch.device("meta"):
        model = VQGAN(config, name=name)
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(weights)
    return model


def _is_there(folder: Path, model: VQGAN) -> bool:
    """Whether `folder` holds this very model; raises UserError where it holds anything else."""
    if not folder.exists():
        return False
    try:
        there = load_tokenizer(folder)
    except CheckpointError:
        there = None
    if there is None or there.config != model.config or not _equal(there, model):
        raise UserError(f"{folder} exists and is another thing. Name another --out, or remove it.")
    return True


def _equal(one: VQGAN, other: VQGAN) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def main(argv: list[str] | None = None) -> int:
    return run_command(ImportTokenizerFlags, run, argv, "pipelines.import_tokenizer")


if __name__ == "__main__":
    sys.exit(main())
