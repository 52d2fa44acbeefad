"""Sampling from a LocalGPT on a whole canvas: one cached token-forward for each code.

Rows are sampled in parallel, each far enough behind the one above for its neighbourhood to be
complete: a wavefront. A forward takes the next position of every row in progress, of all samples.
Keys and values are kept for the last rows only, so memory grows with the canvas's width but not
with its height.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.windows import staggered_rows
from prior.models import Layout, LocalConfig, LocalGPT, Rotation, neighbour_offsets
from prior.sampling.distributions import SampledCodes, SamplingSettings
from prior.sampling.drawing import draw_codes, logits_dtype

# Positions in a forward: sequences times rows. On 2 CPU cores 16 gave the most codes a second, with
# 12 layers of width 768. The number for GPUs has not been measured.
POSITIONS_AT_ONCE, POSITIONS_AT_ONCE_ON_GPUS = 16, 256


class RowRing:
    """Keys and values, layer by layer, of the condition tokens and of the last rows of a canvas.

    Slot 0 is unused: masked reads and discarded writes go there. The condition tokens follow, then
    `kept` rows of positions; row i occupies the ring's row i % kept.
    """

    def __init__(self, model: LocalGPT, prefixes: Tensor, columns: int, kept: int) -> None:
        """An empty ring `columns` positions wide, with condition tokens `prefixes` (P, C)."""
        config, weight = model.config, model.token_embedding.weight
        self.model, self.columns, self.kept = model, columns, kept
        self.first = 1 + prefixes.shape[1]
        shape = (len(prefixes), self.first + kept * columns, config.num_heads, config.head_dim)
        self.layers = [weight.new_zeros(2, *shape) for _ in range(config.num_layers)]
        """each layer's keys and values (2, P, slots, heads, head_dim)"""
        self.offsets = neighbour_offsets(config.radius).to(weight.device)
        self.read_condition(prefixes)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(tensor.nbytes for tensor in self.layers)

    def read_condition(self, prefixes: Tensor) -> None:
        """Keep the keys and values of condition tokens (P, C) in place of those before."""
        if not prefixes.shape[1]:
            return
        model, layout = self.model, Layout(prefixes.shape[1], 0, self.columns)
        rotation = model.rotation_of(layout, prefixes.device)
        latents = model.token_embedding(prefixes)
        for layer, block in enumerate(model.blocks):
            latents = block(latents, rotation, partial(self._attend_condition, layer))

    def _attend_condition(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        self.layers[layer][0, :, 1 : self.first] = keys
        self.layers[layer][1, :, 1 : self.first] = values
        queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
        return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)

    def read(
        self, tokens: Tensor, rows: Tensor, columns: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The head's inputs (P, G, width) at G positions that receive tokens (P, G).

        `rows` and `columns` (G,) are the positions; a row of -1 marks an unused entry. `context`
        (P, G, width) is what grid conditions add at each position. The positions' neighbours must
        have been read before, or be among the G positions.
        """
        visible, mask = self.visible(rows, columns)
        added = additive_mask(mask, self.model.token_embedding.weight.dtype)
        return self.read_at(
            tokens,
            self.model.rotation(rows, columns),
            self.slots(rows, columns),
            visible.flatten(),
            added[:, None, None].repeat(len(tokens), 1, 1, 1),
            context,
        )

    def read_at(
        self,
        tokens: Tensor,
        rotation: Rotation,
        slots: Tensor,
        visible: Tensor,
        mask: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """The head's inputs (P, G, width) after tokens (P, G), kept in slots (G,).

        Token g attends to the slots visible[g * M : (g + 1) * M], with the additive mask
        (P * G, 1, 1, M).
        """
        model, attend = self.model, partial(self._attend, slots, visible, mask)
        latents = model.token_embedding(tokens)
        if context is not None:
            latents = latents + context
        for layer, block in enumerate(model.blocks):
            latents = block(latents, rotation, partial(attend, layer))
        features: Tensor = model.norm(latents)
        return features

    def slots(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Slots (...) of positions at rows and columns (...); 0 in rows above the canvas."""
        slots = self.first + rows.remainder(self.kept) * self.columns + columns
        return torch.where(rows >= 0, slots, 0)

    def visible(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Slots (G, M) that G positions attend to, 0 outside the canvas, and which are inside."""
        near_rows = rows[:, None] + self.offsets[:, 0]
        near_columns = columns[:, None] + self.offsets[:, 1]
        inside = (near_rows >= 0) & (near_columns >= 0) & (near_columns < self.columns)
        slots = torch.where(inside, self.slots(near_rows, near_columns), 0)
        prefix = torch.arange(1, self.first, device=rows.device).expand(len(rows), -1)
        visible = torch.cat([prefix, slots], dim=1)
        return visible, visible > 0

    def visible_shares(self, rows: Tensor, columns: Tensor) -> list[float]:
        """For each of G positions the part, below 1, of its neighbourhood that is on the canvas."""
        _, mask = self.visible(rows, columns)
        visible = mask.sum(1) - (self.first - 1)
        return (visible / (len(self.offsets) + 1)).tolist()

    def _attend(
        self,
        slots: Tensor,
        visible: Tensor,
        mask: Tensor,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        cached_keys, cached_values = self.layers[layer].unbind()
        cached_keys.index_copy_(1, slots, keys)
        cached_values.index_copy_(1, slots, values)
        # Two gathers are faster than one of both on CPUs. (P * G, heads, M, head_dim) each
        keys, values = (
            cached.index_select(1, visible).view(len(mask), -1, *queries.shape[2:]).transpose(1, 2)
            for cached in (cached_keys, cached_values)
        )
        attended = F.scaled_dot_product_attention(
            queries.flatten(0, 1).unsqueeze(2), keys, values, attn_mask=mask
        )
        return attended.reshape(queries.shape)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """An attention mask in `dtype`: 0 where `visible` and -inf elsewhere.

    A boolean mask would be converted to this one in every layer.
    """
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, -torch.inf
    )


class GridContextRows:
    """The context of grid conditions (P, G, rows, columns) for the rows in progress.

    A row is computed from the rows around it when its first position is requested. Row i is stored
    at index i % parallel_rows until another row takes its place.
    """

    def __init__(self, model: LocalGPT, grids: Tensor, parallel_rows: int) -> None:
        assert model.depthwise_context is not None
        self._model, self._grids, self._convolution = model, grids, model.depthwise_context
        sequences, _, _, columns = grids.shape
        weight = model.token_embedding.weight
        # The position that ends a row receives no grids: the last column stays zero.
        self.kept = weight.new_zeros(sequences, parallel_rows, columns + 1, weight.shape[1])
        self._rows = [-1] * parallel_rows

    def at(self, positions: list[tuple[int, int]]) -> Tensor:
        """(P, G, width) for G positions (row, column); a row of -1 marks an unused entry."""
        for row, _ in positions:
            if row >= 0 and self._rows[row % len(self._rows)] != row:
                self.enter(row)
        rows, columns = zip(*positions, strict=True)
        return self.kept[:, [row % len(self._rows) for row in rows], list(columns)]

    def replace_grids(self, grids: Tensor) -> None:
        """Take other grids of the same shape."""
        self._grids, self._rows = grids, [-1] * len(self._rows)

    def enter(self, row: int) -> None:
        """Compute a row's context, in place of the row that has its index."""
        slot = row % len(self._rows)
        self.kept[:, slot, :-1] = self._row(row)
        self._rows[slot] = row

    def _row(self, row: int) -> Tensor:
        radius, last = self._convolution.radius, self._grids.shape[2] - 1
        top, bottom = max(0, row - radius), min(last, row + radius)
        embedded = self._model.embed_grids(self._grids[:, :, top : bottom + 1])
        outside = top - (row - radius), row + radius - bottom
        return self._convolution.inner_rows(F.pad(embedded, (0, 0, 0, 0, *outside)))[:, 0]


def parallel_rows_for(columns: int, radius: int, sequences: int, device: torch.device) -> int:
    """Rows of a canvas `columns` codes wide to sample in parallel: as many as are independent,
    within the size of a forward."""
    possible = -(-(columns + 1) // min(radius, columns))
    most = POSITIONS_AT_ONCE if device.type == "cpu" else POSITIONS_AT_ONCE_ON_GPUS
    return max(1, min(possible, most // sequences))


def first_row_read(forced: Tensor, config: LocalConfig, parallel_rows: int) -> int:
    """The first row of forced codes (..., rows, columns) in reach of a cell to be sampled.

    A multiple of parallel_rows, so that the same rows share a forward as on the whole canvas; 0
    when all cells are known.
    """
    is_open = (forced < 0).any(-1).view(-1, forced.shape[-2]).any(0)
    first_open = int(is_open.byte().argmax())
    return max(0, first_open - config.reach) // parallel_rows * parallel_rows


@torch.inference_mode()
def sample_locally(
    model: LocalGPT,
    prefixes: Tensor,
    uniforms: Tensor,
    settings: SamplingSettings,
    *,
    null_prefixes: Tensor | None = None,
    forced: Tensor | None = None,
    on_cells: Callable[[int, Tensor], None] | None = None,
) -> SampledCodes:
    """Codes (B, rows, columns), each drawn with its number of `uniforms` (B, rows, columns).

    `prefixes` (B, C + G * rows * columns) are the condition tokens, grids last. `null_prefixes`, of
    the same shape, are needed when settings.guides; a guidance schedule follows how much of a
    code's neighbourhood is on the canvas. `forced` (rows, columns) or (B, rows, columns) holds
    known codes, and -1 where one is to be sampled. Leading rows that are known and out of reach of
    all cells to be sampled are not read; the others come out bit for bit as on the whole canvas.
    on_cells(n, codes) is called when n more cells are done, with the codes so far and -1 elsewhere.
    """
    batch, rows, columns = uniforms.shape
    radius, device = model.config.radius, prefixes.device
    if settings.guides:
        assert null_prefixes is not None
        prefixes = torch.cat([prefixes, null_prefixes])
    if forced is None:
        forced = torch.full((rows, columns), -1)
    canvas = _Canvas(forced.to(device).expand(batch, -1, -1), model.config.border_token)
    lag = min(radius, columns)
    parallel_rows = parallel_rows_for(columns, radius, len(prefixes), device)
    prefixes, grids = model.split_tokens(prefixes, rows, columns)
    ring = RowRing(model, prefixes, columns + 1, parallel_rows + radius)
    scale_dtype = logits_dtype(model)
    grid_context = GridContextRows(model, grids, parallel_rows) if grids.shape[1] else None
    skipped = first_row_read(forced, model.config, parallel_rows)
    if on_cells is not None and skipped:
        on_cells(skipped * columns, canvas.received[:, :, 1:])
    for cells in staggered_rows(rows - skipped, columns + 1, lag, parallel_rows):
        positions = [(r + skipped if r >= 0 else r, c) for r, c in cells]
        row, column = torch.tensor(positions, device=device).T
        tokens = canvas.received[:, row.clamp(min=0), column]
        context = None if grid_context is None else grid_context.at(positions)
        features = ring.read(tokens.repeat(len(prefixes) // batch, 1), row, column, context)
        scale = None
        if settings.guides:
            scales = [settings.guidance_at(share) for share in ring.visible_shares(row, column)]
            scale = torch.tensor(scales, device=device, dtype=scale_dtype)[:, None]
        numbers = uniforms[:, row.clamp(min=0), column.clamp(max=columns - 1)]
        # All entries are drawn, so that every draw has the same shape; unused ones are dropped.
        num_new = canvas.put(positions, draw_codes(model, features, numbers, settings, scale))
        if on_cells is not None:
            on_cells(num_new, canvas.received[:, :, 1:])
    return SampledCodes(canvas.received[:, :, 1:].contiguous(), canvas.log_probabilities)


class _Canvas:
    """Tokens received by each position (B, rows, columns + 1), the border and then the row's codes,
    and the codes' log-probabilities (B, rows, columns)."""

    def __init__(self, forced: Tensor, border_token: int) -> None:
        self.columns = forced.shape[2]
        self.open = forced < 0
        self.received = F.pad(forced, (1, 0), value=border_token)
        self.log_probabilities = torch.zeros(forced.shape, device=forced.device)

    def put(self, positions: list[tuple[int, int]], drawn: SampledCodes) -> int:
        """Store the codes drawn at `positions` in open cells; returns the number of cells done."""
        codes, logs = drawn
        num_cells = 0
        for entry, (row, column) in enumerate(positions):
            if row < 0 or column == self.columns:  # unused, or the position that ends a row
                continue
            num_cells += 1
            is_open = self.open[:, row, column]
            received = self.received[:, row, column + 1]
            self.received[:, row, column + 1] = codes[:, entry].where(is_open, received)
            self.log_probabilities[:, row, column] = logs[:, entry].where(is_open, 0)
        return num_cells
