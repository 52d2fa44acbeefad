"""Points as tokens: one token for each place of a coarse grid over the window.

`places` are to each side. As published (Esser et al. 2021, code:
ObjectsBoundingBoxConditionalBuilder), a point's column is round(x * (places - 1)), and its row
likewise.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ops.config import Range

#: Places to a side.
Places = Annotated[int, Range(least=2, most=1024)]


def place_tokens(points: Tensor, places: int) -> Tensor:
    """Tokens (...), 0 .. places**2 - 1, of points (..., 2) x, y in the window's frame; a point
    outside is moved to the edge."""
    columns, rows = (points.clamp(0, 1) * (places - 1)).round().to(torch.int64).unbind(-1)
    return rows * places + columns
