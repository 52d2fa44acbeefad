"""Painting with a LocalGPT: one cached forward a code, whatever the canvas's size.

Rows are drawn side by side, each so far behind the one above that all it can see is there: a
wavefront. A forward takes the next position of every row under way, of all pictures. Keys and
values are kept for the last rows only, so memory grows with the canvas's width and not its height.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.windows import staggered_rows
from prior.models import Layout, LocalGPT, offsets_seen
from prior.sampling.distributions import Draw, SamplingSettings, draw, guided

#: In a forward, pictures times rows. On 2 cores 16 gave the most codes a second at 12 layers of
#: 768; GPUs want more, and how many has not been measured.
POSITIONS_AT_ONCE, POSITIONS_AT_ONCE_ON_GPUS = 16, 256


class RowRing:
    """Keys and values of the condition and of the last rows of a canvas, layer by layer.

    Place 0 is nobody's: what is not to be seen or kept goes there. The condition's tokens follow,
    then `kept` rows of positions; row i lies in the ring's row i % kept.
    """

    def __init__(self, model: LocalGPT, prefixes: Tensor, columns: int, kept: int) -> None:
        """An empty canvas, `columns` positions wide, after condition tokens `prefixes` (P, C)."""
        config, weight = model.config, model.token_embedding.weight
        self.model, self.columns, self.kept = model, columns, kept
        self.first = 1 + prefixes.shape[1]
        shape = (len(prefixes), self.first + kept * columns, config.num_heads, config.head_dim)
        self.keys = [weight.new_zeros(shape) for _ in range(config.num_layers)]
        self.values = [weight.new_zeros(shape) for _ in range(config.num_layers)]
        self.offsets = offsets_seen(config.radius).to(weight.device)
        self._read_condition(prefixes)

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(tensor.nbytes for tensor in self.keys + self.values)

    def _read_condition(self, prefixes: Tensor) -> None:
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
        self.keys[layer][:, 1 : self.first] = keys
        self.values[layer][:, 1 : self.first] = values
        queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
        return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)

    def read(
        self, tokens: Tensor, rows: Tensor, columns: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Logits (P, G, K) of the codes at G positions that receive tokens (P, G).

        `heard` (P, G, width) is what grids tell them, where there are any. `rows` and `columns`
        (G,) say where; a row of -1 marks a position that is none. Positions may see each other, as
        long as everything else they see was read before.
        """
        model = self.model
        seen, mask = self._seen(rows, columns)
        attend = partial(self._attend, self._place(rows, columns), seen, mask)
        rotation = model.rotation(rows, columns)
        latents = model.token_embedding(tokens)
        if context is not None:
            latents = latents + context
        for layer, block in enumerate(model.blocks):
            latents = block(latents, rotation, partial(attend, layer))
        logits: Tensor = model.head(model.norm(latents))
        return logits

    def _place(self, rows: Tensor, columns: Tensor) -> Tensor:
        places = self.first + rows.remainder(self.kept) * self.columns + columns
        return torch.where(rows >= 0, places, 0)

    def _seen(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The places (G * M,) that G positions see, and a mask (G, 1, 1, M) of those that are."""
        near_rows = rows[:, None] + self.offsets[:, 0]
        near_columns = columns[:, None] + self.offsets[:, 1]
        there = (near_rows >= 0) & (near_columns >= 0) & (near_columns < self.columns)
        places = torch.where(there, self._place(near_rows, near_columns), 0)
        prefix = torch.arange(1, self.first, device=rows.device).expand(len(rows), -1)
        seen = torch.cat([prefix, places], dim=1)
        return seen.flatten(), (seen > 0)[:, None, None]

    def shares_seen(self, rows: Tensor, columns: Tensor) -> list[float]:
        """The share of what a position can see at most that G positions see, below 1."""
        _, mask = self._seen(rows, columns)
        seen = mask.flatten(1).sum(1) - (self.first - 1)
        return (seen / (len(self.offsets) + 1)).tolist()

    def _attend(
        self,
        places: Tensor,
        seen: Tensor,
        mask: Tensor,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        batch, count, *sizes = queries.shape
        self.keys[layer][:, places] = keys
        self.values[layer][:, places] = values
        around = [
            kept[layer].index_select(1, seen).view(batch * count, -1, *sizes)
            for kept in (self.keys, self.values)
        ]
        queries, keys, values = (
            t.transpose(1, 2) for t in (queries.flatten(0, 1)[:, None], *around)
        )
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask.repeat(batch, 1, 1, 1)
        )
        return attended.view(batch, count, *sizes)


class GridContextRows:
    """What grids (P, G, rows, columns) tell the positions of the rows under way.

    A row is worked out when its first position comes, from the rows around it; row i is kept in
    place i % at_once, until another comes there.
    """

    def __init__(self, model: LocalGPT, grids: Tensor, at_once: int) -> None:
        assert model.depthwise_context is not None
        self._model, self._grids, self._look = model, grids, model.depthwise_context
        sequences, _, _, columns = grids.shape
        weight = model.token_embedding.weight
        # The position that closes a row hears nothing: the last column stays zero.
        self.kept = weight.new_zeros(sequences, at_once, columns + 1, weight.shape[1])
        self._rows = [-1] * at_once

    def at(self, places: list[tuple[int, int]]) -> Tensor:
        """(P, G, width) for G places (row, column); a row of -1 is none."""
        for row, _ in places:
            slot = row % len(self._rows)
            if row >= 0 and self._rows[slot] != row:
                self.kept[:, slot, :-1] = self._row(row)
                self._rows[slot] = row
        rows, columns = zip(*places, strict=True)
        return self.kept[:, [row % len(self._rows) for row in rows], list(columns)]

    def _row(self, row: int) -> Tensor:
        radius, last = self._look.radius, self._grids.shape[2] - 1
        above, below = max(0, row - radius), min(last, row + radius)
        prefix = self._model.embed_grids(self._grids[:, :, above : below + 1])
        beyond = above - (row - radius), row + radius - below
        return self._look.inner_rows(F.pad(prefix, (0, 0, 0, 0, *beyond)))[:, 0]


def rows_at_once(columns: int, radius: int, sequences: int, device: torch.device) -> int:
    """How many rows of a canvas, `columns` codes wide, are under way together: as many as can be,
    within what a forward is to hold."""
    possible = -(-(columns + 1) // min(radius, columns))
    most = POSITIONS_AT_ONCE if device.type == "cpu" else POSITIONS_AT_ONCE_ON_GPUS
    return max(1, min(possible, most // sequences))


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
) -> Draw:
    """Codes (B, rows, columns), one drawn with each of `uniforms` (B, rows, columns).

    `prefixes` (B, C + G * rows * columns) are the condition tokens, grids last. `null_prefixes`,
    the same when nothing is told, are needed when settings.guides; a guidance that rises does so
    with how much of what a code can see is there. `forced` (rows, columns), or one each (B, rows,
    columns), holds known codes, and -1 where one is to be drawn. Where upper rows are known and no
    code below can hear of them, they are not read; the rest comes out bit for bit as on the whole
    canvas.
    on_cells(n, codes) is called with the codes so far, -1 where none is drawn, whenever n more
    cells are.
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
    at_once = rows_at_once(columns, radius, len(prefixes), device)
    prefixes, grids = model.parted(prefixes, rows, columns)
    ring = RowRing(model, prefixes, columns + 1, at_once + radius)
    grid_context = GridContextRows(model, grids, at_once) if grids.shape[1] else None
    # Whole rounds of rows are left out, so that each row shares its forwards as ever.
    skipped = max(0, canvas.first_open - model.config.reach) // at_once * at_once
    if on_cells is not None and skipped:
        on_cells(skipped * columns, canvas.received[:, :, 1:])
    for steps in staggered_rows(rows - skipped, columns + 1, lag, at_once):
        places = [(r + skipped if r >= 0 else r, c) for r, c in steps]
        row, column = torch.tensor(places, device=device).T
        tokens = canvas.received[:, row.clamp(min=0), column]
        context = None if grid_context is None else grid_context.at(places)
        logits = ring.read(tokens.repeat(len(prefixes) // batch, 1), row, column, context)
        if settings.guides:
            scales = [settings.guidance_at(share) for share in ring.shares_seen(row, column)]
            by = torch.tensor(scales, device=device, dtype=logits.dtype)[:, None]
            logits = guided(logits[:batch], logits[batch:], by)
        numbers = uniforms[:, row.clamp(min=0), column.clamp(max=columns - 1)]
        # All are drawn, so that each draw has one size; those that stand for a code are kept.
        num_new = canvas.keep(places, draw(logits.flatten(0, 1), numbers.flatten(), settings))
        if on_cells is not None:
            on_cells(num_new, canvas.received[:, :, 1:])
    return Draw(canvas.received[:, :, 1:].contiguous(), canvas.log_probabilities)


class _Canvas:
    """What each position receives, (B, rows, columns + 1): the border, then the codes of its row;
    and the log-probabilities (B, rows, columns) of the codes."""

    def __init__(self, forced: Tensor, border_token: int) -> None:
        self.columns = forced.shape[2]
        self.open = forced < 0
        #: the first row with an open cell of any picture, or 0 where all is known
        self.first_open = int(self.open.any(2).any(0).byte().argmax())
        self.received = F.pad(forced, (1, 0), value=border_token)
        self.log_probabilities = torch.zeros(forced.shape, device=forced.device)

    def keep(self, places: list[tuple[int, int]], drawn: Draw) -> int:
        """Put what was drawn at `places` where nothing is known; how many of them are cells."""
        codes, logs = (part.view(len(self.received), -1) for part in drawn)
        cells = 0
        for slot, (row, column) in enumerate(places):
            if row < 0 or column == self.columns:  # nobody's, or the position that closes a row
                continue
            cells += 1
            here = self.open[:, row, column]
            received = self.received[:, row, column + 1]
            self.received[:, row, column + 1] = codes[:, slot].where(here, received)
            self.log_probabilities[:, row, column] = logs[:, slot].where(here, 0)
        return cells
