"""What a prior that fills in is told of a picture in training: masks as people make them."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("rectangles", "strokes", "half", "nothing")


def drawn_known(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Which cells (rows, columns), bool, are known, drawn by `generator`, which is the sample's.

    One of four kinds with equal chance: one to three rectangles are unknown; strokes of a brush
    are; one half, of the four; or everything.
    """
    kind = KINDS[_integer(len(KINDS), generator)]
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


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
