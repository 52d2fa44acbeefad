"""The flags of the study command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ops.config import Count, Seed


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """Run a small repetition of one of the paper's studies on your photographs."""

    EXAMPLE: ClassVar[str] = "downsampling --data photographs/ --out runs/studies/downsampling"

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """a study of pipelines/studies: downsampling, vqvae_vqgan, ..."""
    data: Path
    """photographs: a folder, tar files or Parquet tables, as for train_tokenizer; a few hundred"""
    out: Path
    """the study's folder: runs, codes, results.json, table.md, plot.png, report.md"""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """random seeds; every variant is run with each"""
    threads: Count | None = None
    """CPU threads (default: torch's own choice)"""
    steps: Count | None = None
    """upper limit of the steps of every training run; with 20 it is only a smoke test"""
    perceptual: str = "none"
    """for studies of the VQGAN's losses: lpips (downloads torchvision's VGG16), none, or the path
    of that file"""
    show: Path | None = None
    """photographs to show reconstructions of (default: those of the demo)"""
