"""`segmentation`, `depth`: grids of codes by a tokenizer of label maps, of depth maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prior.conditions.condition import (
    CONDITIONS,
    Condition,
    Shape,
    Vocabulary,
    check_range,
    entry_of,
    needs_track,
)
from prior.conditions.frames import GRID, Entry


@dataclass(frozen=True, kw_only=True)
class CodeGrid(Condition):
    """`batch[name]` (B, h, w): codes of a tokenizer that has `codebook_size`; -1 is the null token.

    `fingerprint`, where known, is that tokenizer's.
    """

    codebook_size: Vocabulary
    fingerprint: str = ""

    is_grid: ClassVar[bool] = True
    encode_with: ClassVar[str] = "PATH"  # the value of encode's --track, as an error names it

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch has no such track, or a code is out of range."""
        needs = needs_track(self.name, self.encode_with)
        codes = entry_of(batch, self.name, (batch_size, *shape), needs).to(torch.int64)
        check_range(codes, -1, self.codebook_size - 1, f"Codes of '{self.name}'")
        return torch.where(codes < 0, self.null_token, codes)


@CONDITIONS.register("segmentation")
@dataclass(frozen=True, kw_only=True)
class Segmentation(CodeGrid):
    """A label map, by the codes of a tokenizer for label maps (Esser et al. 2021, section 4.2)."""

    name: ClassVar[str] = "segmentation"
    entries: ClassVar[Mapping[str, Entry]] = {"segmentation": GRID}


@CONDITIONS.register("depth")
@dataclass(frozen=True, kw_only=True)
class Depth(CodeGrid):
    """A depth map, by the codes of a tokenizer for depth maps."""

    name: ClassVar[str] = "depth"
    entries: ClassVar[Mapping[str, Entry]] = {"depth": GRID}
