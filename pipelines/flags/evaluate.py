"""The flags of the evaluate command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from ops.config import Count, Share
from pipelines.console import NameOrURI, SourceOrURI, StorageOptions
from pipelines.flags.flag_types import Side


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Evaluate the reconstructions of a tokenizer, or the likelihood of codes under a prior."""

    EXAMPLE: ClassVar[str] = "tokenizer photo-f8 --data imgs/ --out metrics.json --held-out 1"

    kind: tyro.conf.Positional[Annotated[Literal["tokenizer", "prior"], tyro.conf.arg()]]
    """what MODEL is"""
    model: tyro.conf.Positional[Annotated[NameOrURI, tyro.conf.arg(metavar="MODEL")]]
    """a bundled tokenizer's name, a model folder or a run folder; s3:// and gs:// too"""
    data: SourceOrURI
    """images for a tokenizer (or label maps, or depth maps), a code store for a prior; also at
    s3:// and gs://, and images at https:// and hf://datasets/"""
    targets: SourceOrURI | None = None
    """for a tokenizer of label or depth maps: a folder of these, named like --data's images"""
    out: Path
    """the JSON file to write, for instance metrics.json"""
    held_out: Share = 0.1
    """evaluate on this share of the images, the same that training holds out; 1: all"""
    image_size: Side = 256
    """side, in pixels, of the centre crops that a tokenizer is evaluated on"""
    most: Count = 1000
    """evaluate on at most this many samples"""
    reconstructions: Path | None = None
    """for a tokenizer: also write this PNG of originals above their reconstructions"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    storage_option: StorageOptions = ()
