"""Rotary positions in two dimensions: attention that knows how many rows and columns lie between.

Each pair of a query's or key's numbers is turned by an angle that grows with its token's row (the
first half of the pairs) or column (the second), so that a product of two tells their offset alone.
Su et al., "RoFormer" (2021); in two dimensions as in LlamaGen (Sun et al. 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BASE = 10_000.0  # the slowest pair turns about once in 2 * pi * BASE rows: RoFormer's choice


class Rotation(NamedTuple):
    """By what each pair of each token is turned."""

    cosines: Tensor  # (T, head_dim / 2)
    sines: Tensor  # (T, head_dim / 2)


def places(positions: Tensor, condition_length: int, window: int) -> tuple[Tensor, Tensor]:
    """Row and column, both (T,), of positions (T,) as GPT.positions counts them.

    Codes lie in a raster of `window` columns. The condition's tokens lie in the same raster, just
    before its row 0: a condition that is itself a grid stands above the picture, column by column.
    """
    cells = positions - condition_length
    return cells.div(window, rounding_mode="floor"), cells.remainder(window)


def rotation_at(rows: Tensor, columns: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """The rotation of tokens at `rows` and `columns` (T,); head_dim a multiple of 4.

    At least float32, whatever `dtype`: bfloat16 cannot tell nearby angles apart.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    count = head_dim // 4
    steps = torch.arange(count, device=rows.device, dtype=dtype) / count
    frequencies = BASE**-steps
    angles = torch.cat([place.to(dtype)[:, None] * frequencies for place in (rows, columns)], dim=1)
    return Rotation(angles.cos(), angles.sin())


def rotate(vectors: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys (..., T, head_dim), turned; pair i is numbers i and i + head_dim / 2."""
    first, second = vectors.chunk(2, dim=-1)
    cosines, sines = rotation
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
