"""`inpaint`: the known codes of an image of which the rest is to be filled in.

Training draws which codes are unknown: rectangles, strokes of a brush, one half, or all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
)
from prior.conditions.frames import GRID, Entry

MASK_KINDS = ("rectangles", "strokes", "half", "nothing")


@CONDITIONS.register("inpaint")
@dataclass(frozen=True, kw_only=True)
class Inpaint(Condition):
    """`batch["codes"]` (B, h, w) where `batch["known"]` (B, h, w) bool is true, else a mask token.

    The mask token is the null token: where the condition is not given, nothing is known.
    """

    codebook_size: Vocabulary

    name: ClassVar[str] = "inpaint"
    entries: ClassVar[Mapping[str, Entry]] = {"codes": GRID, "known": GRID}
    is_grid: ClassVar[bool] = True
    has_image_codes: ClassVar[bool] = True

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch lacks codes or mask, or a known code is none."""
        grid = (batch_size, *shape)
        codes = entry_of(batch, "codes", grid, "The condition 'inpaint' needs codes.")
        needs = "The condition 'inpaint' needs 'known': true where a code is known."
        known = entry_of(batch, "known", grid, needs).to(torch.bool)
        check_range(codes[known], 0, self.codebook_size - 1, "Known codes")
        return torch.where(known, codes.to(torch.int64), self.null_token)

    def implied(
        self, entries: Mapping[str, Tensor], count: int, canvas: Shape
    ) -> Mapping[str, Tensor]:
        """Codes that are -1 are not known."""
        return {"known": entries["codes"] >= 0} if "codes" in entries else {}

    def drawn(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator]
    ) -> Mapping[str, Tensor]:
        """A mask for each sample of a batch that has codes."""
        if batch.get("codes") is None:
            return {}
        rows, columns = batch["codes"].shape[1:]
        masks = [drawn_mask(rows, columns, generator) for generator in generators]
        return {"known": torch.stack(masks)}


def drawn_mask(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Which cells (rows, columns), bool, are known, drawn by a sample's `generator`.

    One of four kinds with equal chance: one to three rectangles are unknown; strokes of a brush
    are; one half, of the four; or everything.
    """
    kind = MASK_KINDS[_integer(len(MASK_KINDS), generator)]
    if kind == "rectangles":
        return _rectangles(rows, columns, generator)
    if kind == "strokes":
        return _strokes(rows, columns, generator)
    known = torch.zeros(rows, columns, dtype=torch.bool)
    if kind == "half":
        side = _integer(4, generator)
        axis, size = (known, rows) if side < 2 else (known.T, columns)
        axis[: size // 2] = side % 2 == 0
        axis[size // 2 :] = side % 2 == 1
    return known


def _rectangles(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    known = torch.ones(rows, columns, dtype=torch.bool)
    for _ in range(1 + _integer(3, generator)):
        height, width = (1 + _integer(max(1, 3 * size // 4), generator) for size in (rows, columns))
        top, left = _integer(rows - height + 1, generator), _integer(columns - width + 1, generator)
        known[top : top + height, left : left + width] = False
    return known


def _strokes(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """One to three paths of eight steps, as wide as a brush of an eighth of the shorter side."""
    known = torch.ones(rows, columns, dtype=torch.bool)
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    radius = max(1.0, min(rows, columns) / 8)
    for _ in range(1 + _integer(3, generator)):
        sides = torch.tensor([rows, columns], dtype=torch.float64)
        spot = torch.rand(2, generator=generator, dtype=torch.float64) * sides
        for step in torch.randn(8, 2, generator=generator, dtype=torch.float64):
            spot = (spot + radius * step).clamp(min=0).minimum(sides - 1)
            known &= (row - spot[0]) ** 2 + (column - spot[1]) ** 2 > radius**2
    return known


def _integer(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))
