"""Rotary position embedding in two dimensions.

Each pair of a query's or key's channels is rotated by an angle that grows with its token's row (the
first half of the pairs) or column (the second half), so that the dot product of a query and a key
depends on positions through their offset only. Su et al., "RoFormer" (2021, equations 12 to 16);
in two dimensions as in LlamaGen (Sun et al. 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BASE = 10_000.0  # as in RoFormer; the slowest pair has a period of about 2 * pi * BASE rows


class Rotation(NamedTuple):
    """The angle of each pair of channels of each token: factors of the channels and their partners.

    A head's channels are G groups of n pairs; pair i of a group is its channels i and i + n.
    """

    cosines: Tensor  # (T, G, 2, n)
    sines: Tensor  # (T, G, 2, n), negative for the first channel of a pair


def grid_coordinates(
    positions: Tensor, condition_length: int, window: int
) -> tuple[Tensor, Tensor]:
    """Row and column, each (T,), of positions (T,) as GPT.positions numbers them.

    Codes are in a raster of `window` columns. Condition tokens continue that raster above its
    row 0: a condition that is a grid itself is placed above the codes, aligned by column.
    """
    cells = positions - condition_length
    return cells.div(window, rounding_mode="floor"), cells.remainder(window)


def rotation_at(rows: Tensor, columns: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """The rotation of tokens at `rows` and `columns`, each (T,), in one group of pairs.

    `head_dim` is a multiple of 4. Half of the pairs are rotated by row, the others by column.
    Computed in `dtype`, but at least in float32: bfloat16 cannot resolve nearby angles.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    count = head_dim // 4
    steps = torch.arange(count, device=rows.device, dtype=dtype) / count
    frequencies = BASE**-steps
    angles = torch.cat([index.to(dtype)[:, None] * frequencies for index in (rows, columns)], dim=1)
    cosines, sines = angles.cos(), angles.sin()
    pairs = torch.stack([cosines, cosines], dim=1), torch.stack([-sines, sines], dim=1)
    return Rotation(*(part[:, None] for part in pairs))


def rotate(vectors: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys (..., T, head_dim), rotated, in three operations."""
    cosines, sines = rotation
    pairs = vectors.unflatten(-1, cosines.shape[-3:])
    return torch.addcmul(pairs * cosines, pairs.flip(-2), sines).flatten(-3)
