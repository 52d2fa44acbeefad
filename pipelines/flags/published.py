"""The flags of import_tokenizer and import_prior."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from ops.config import Range

Groups = Annotated[int, Range(least=1, most=2**16)]


@dataclass(frozen=True, kw_only=True)
class ImportTokenizerFlags:
    """Convert a published VQGAN to a model folder."""

    EXAMPLE: ClassVar[str] = "compvis vqgan_imagenet_f16_1024.ckpt --out runs/imagenet-f16"

    kind: tyro.conf.Positional[
        Annotated[Literal["compvis", "llamagen", "diffusers"], tyro.conf.arg()]
    ]
    """the checkpoint's format: taming-transformers and latent diffusion, LlamaGen, or diffusers'
    VQModel"""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """a .safetensors file or a torch checkpoint, of which only the tensors are read"""
    out: Path
    """the model folder to write"""
    norm_groups: Groups = 32
    """groups of the group norms, which cannot be read from the weights; 32 in all published ones"""


@dataclass(frozen=True, kw_only=True)
class ImportPriorFlags:
    """Convert a published transformer to a model folder."""

    EXAMPLE: ClassVar[str] = "compvis 2020-11-20T12-54-32_drin_transformer.ckpt --out runs/drin"

    kind: tyro.conf.Positional[Annotated[Literal["compvis"], tyro.conf.arg()]]
    """the checkpoint's format: compvis is the Net2NetTransformer of taming-transformers, or only
    its GPT"""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """a .safetensors file or a torch checkpoint, of which only the tensors are read"""
    out: Path
    """the model folder to write"""
    num_classes: Annotated[int, Range(least=1, most=2**24)] | None = None
    """number of classes it is conditioned on, 1000 for ImageNet (default: unconditional)"""
    conditions: Literal["coordinates"] | None = None
    """coordinates: it is conditioned on each code's position in the image, as window models are"""
    window: Annotated[int, Range(least=1, most=4096)] = 16
    """side of its window, in codes; 16 in all published models"""
    num_heads: Annotated[int, Range(least=1, most=1024)] = 16
    """attention heads, which cannot be read from the weights; 16 in all published models"""
    tokenizer: str | None = None
    """name or model folder of the tokenizer it was trained with (default: the one in FILE)"""
    norm_groups: Groups = 32
    """groups of the group norms of the tokenizer in FILE; 32 in all published ones"""
