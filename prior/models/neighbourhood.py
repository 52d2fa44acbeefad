"""Who sees whom on a canvas whose positions see only those around them, and ways to attend so.

A sequence is C condition tokens and then rows x columns positions, row by row. A position sees all
condition tokens, itself and up to `radius` positions left of it in its row, and the positions at
most `radius` columns away in the `radius` rows above. Condition tokens see each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """What a sequence is made of."""

    condition_length: int
    rows: int
    columns: int  # of positions: one more than of codes


def offsets_seen(radius: int) -> Tensor:
    """Where what a position sees lies from it: (M, 2) rows and columns, both int64."""
    above = torch.cartesian_prod(torch.arange(-radius, 0), torch.arange(-radius, radius + 1))
    beside = torch.cartesian_prod(torch.arange(1), torch.arange(-radius, 1))
    return torch.cat([above, beside])


def sees(layout: Layout, radius: int, query: Tensor, key: Tensor) -> Tensor:
    """Whether the query-th token of a sequence sees the key-th, for tensors that broadcast."""
    first, columns = layout.condition_length, layout.columns
    of_query, of_key = query - first, key - first  # below 0 for condition tokens
    down = of_query.div(columns, rounding_mode="floor") - of_key.div(columns, rounding_mode="floor")
    right = of_query.remainder(columns) - of_key.remainder(columns)
    above = (down >= 1) & (down <= radius) & (right.abs() <= radius)
    beside = (down == 0) & (right >= 0) & (right <= radius)
    return (key < first) | ((query >= first) & (above | beside))


# --- exact and simple: each row beside copies of the rows above it


def band_mask(layout: Layout, radius: int, device: torch.device) -> Tensor:
    """What each row's positions see of their band: (rows, 1, columns, C + (radius + 1) * columns).

    A band is the condition tokens, the `radius` rows above and the row itself.
    """
    first, rows, columns = layout
    row = torch.arange(rows, device=device).view(-1, 1, 1)
    column = torch.arange(columns, device=device)
    query = first + row * columns + column.view(1, -1, 1)
    band_rows = row + torch.arange(-radius, 1, device=device).view(1, -1, 1)
    cells = (first + band_rows * columns + column).view(rows, 1, -1)  # below `first` above the top
    inside = (band_rows >= 0).expand(rows, -1, columns).reshape(rows, 1, -1)
    seen = sees(layout, radius, query, cells.clamp(min=first)) & inside
    conditions = seen.new_ones(rows, columns, first)
    return torch.cat([conditions, seen], dim=-1).unsqueeze(1)


def attend_in_bands(
    queries: Tensor, keys: Tensor, values: Tensor, *, layout: Layout, radius: int, mask: Tensor
) -> Tensor:
    """Attention of (B, T, heads, head_dim), work and memory growing with the canvas's area only."""
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
    """(B, T, heads, D) -> (B * rows, C + (radius + 1) * columns, heads, D), a band for each row."""
    first, rows, columns = layout
    conditions, cells = tokens[:, None, :first], tokens[:, first:]
    cells = cells.unflatten(1, (rows, columns))  # (B, rows, columns, heads, D)
    padded = F.pad(cells, (0, 0, 0, 0, 0, 0, radius, 0))
    bands = padded.unfold(1, radius + 1, 1).movedim(-1, 2).flatten(2, 3)
    return torch.cat([conditions.expand(-1, rows, -1, -1, -1), bands], dim=2).flatten(0, 1)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of (B, T, heads, D), which torch wants as (B, heads, T, D)."""
    queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2)


# --- on GPUs: one kernel that skips the blocks nobody in it sees


def attend_in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, *, layout: Layout, radius: int
) -> Tensor:
    """Attention of (B, T, heads, head_dim) by torch's flex_attention, compiled on GPUs."""
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
        return sees(layout, radius, query, key)

    return create_block_mask(mask, None, None, length, length, device=str(device))
