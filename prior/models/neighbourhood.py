"""The neighbourhood attention pattern of LocalGPT, as dense bands on CPUs and as blocks on GPUs.

A sequence holds C condition tokens and then rows x columns positions in raster order. A position
attends to all condition tokens, to itself and up to `radius` positions to its left in its row, and
to the positions at most `radius` columns away in the `radius` rows above. Condition tokens attend
to each other. Neighbourhood attention is due to Hassani et al. (2023); the causal form over a grid
to Parmar et al., "Image Transformer" (2018, section 3.2).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """Lengths of the parts of a sequence."""

    condition_length: int
    rows: int
    columns: int  # positions in a row: one more than there are codes


def neighbour_offsets(radius: int) -> Tensor:
    """Offsets (M, 2) int64, as rows and columns, of the positions that a position attends to."""
    above = torch.cartesian_prod(torch.arange(-radius, 0), torch.arange(-radius, radius + 1))
    left = torch.cartesian_prod(torch.arange(1), torch.arange(-radius, 1))
    return torch.cat([above, left])


def is_visible(layout: Layout, radius: int, query: Tensor, key: Tensor) -> Tensor:
    """Whether token `query` of a sequence attends to token `key`; the two tensors broadcast."""
    first, columns = layout.condition_length, layout.columns
    of_query, of_key = query - first, key - first  # below 0 for condition tokens
    down = of_query.div(columns, rounding_mode="floor") - of_key.div(columns, rounding_mode="floor")
    right = of_query.remainder(columns) - of_key.remainder(columns)
    above = (down >= 1) & (down <= radius) & (right.abs() <= radius)
    left = (down == 0) & (right >= 0) & (right <= radius)
    return (key < first) | ((query >= first) & (above | left))


# --- on CPUs: dense attention of each row over a copy of the rows above it


def band_mask(layout: Layout, radius: int, device: torch.device) -> Tensor:
    """Attention mask of each row over its band: (rows, 1, columns, C + (radius + 1) * columns).

    A band holds the condition tokens, the `radius` rows above and the row itself.
    """
    first, rows, columns = layout
    row = torch.arange(rows, device=device).view(-1, 1, 1)
    column = torch.arange(columns, device=device)
    query = first + row * columns + column.view(1, -1, 1)
    band_rows = row + torch.arange(-radius, 1, device=device).view(1, -1, 1)
    cells = (first + band_rows * columns + column).view(
        rows, 1, -1
    )  # below `first` in rows above the canvas
    inside = (band_rows >= 0).expand(rows, -1, columns).reshape(rows, 1, -1)
    visible = is_visible(layout, radius, query, cells.clamp(min=first)) & inside
    conditions = visible.new_ones(rows, columns, first)
    return torch.cat([conditions, visible], dim=-1).unsqueeze(1)


def attend_in_bands(
    queries: Tensor, keys: Tensor, values: Tensor, *, layout: Layout, radius: int, mask: Tensor
) -> Tensor:
    """Attention of (B, T, heads, head_dim); time and memory are linear in the number of rows."""
    first, rows, columns = layout
    batch, _, heads, size = queries.shape
    prefix = _attention(queries[:, :first], keys[:, :first], values[:, :first])
    attended = _attention(
        queries[:, first:].reshape(batch * rows, columns, heads, size),
        _bands(keys, layout, radius),
        _bands(values, layout, radius),
        mask.expand(rows, -1, -1, -1).repeat(batch, 1, 1, 1),
    )
    return torch.cat([prefix, attended.view(batch, rows * columns, heads, size)], dim=1)


def _bands(tokens: Tensor, layout: Layout, radius: int) -> Tensor:
    """(B, T, heads, D) -> (B * rows, C + (radius + 1) * columns, heads, D), one band a row."""
    first, rows, columns = layout
    conditions, cells = tokens[:, None, :first], tokens[:, first:]
    cells = cells.unflatten(1, (rows, columns))  # (B, rows, columns, heads, D)
    padded = F.pad(cells, (0, 0, 0, 0, 0, 0, radius, 0))
    bands = padded.unfold(1, radius + 1, 1).movedim(-1, 2).flatten(2, 3)
    return torch.cat([conditions.expand(-1, rows, -1, -1, -1), bands], dim=2).flatten(0, 1)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of (B, T, heads, D); torch takes (B, heads, T, D)."""
    queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2)


# --- on GPUs: one kernel that skips fully masked blocks


def attend_in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, *, layout: Layout, radius: int
) -> Tensor:
    """attend_in_bands by torch's flex_attention, which is compiled on GPUs."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = _compiled(flex_attention) if queries.is_cuda else flex_attention
    mask = _block_mask(layout, radius, queries.device)
    queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
    attended: Tensor = attend(queries, keys, values, block_mask=mask)
    return attended.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled(function: Any) -> Any:
    return torch.compile(function)


@lru_cache(maxsize=8)
def _block_mask(layout: Layout, radius: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    length = layout.condition_length + layout.rows * layout.columns

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(layout, radius, query, key)

    return create_block_mask(mask, None, None, length, length, device=str(device))
