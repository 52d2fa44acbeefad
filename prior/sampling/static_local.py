"""Static decoding from a LocalGPT: each step reads and draws one code of each row in progress.

The same steps as sample_locally, with the indices of all steps computed ahead: see
prior.sampling.static_decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.windows import staggered_rows
from prior.models import LocalGPT, Rotation
from prior.sampling.distributions import SampledCodes, SamplingSettings
from prior.sampling.drawing import logits_dtype
from prior.sampling.local import (
    GridContextRows,
    RowRing,
    additive_mask,
    first_row_read,
    parallel_rows_for,
)
from prior.sampling.static_decode import MULTIPLE, Call, OnCells, StaticCanvas, results, run_calls
from prior.sampling.step_graphs import GraphPool, IndexedStep


class StaticLocalSampler:
    """Samples batches of one shape from a LocalGPT in eval mode, whose weights stay in place."""

    @torch.inference_mode()
    def __init__(
        self, model: LocalGPT, settings: SamplingSettings, shape: tuple[int, int, int]
    ) -> None:
        """For codes of `shape` (B, rows, columns)."""
        batch, self._rows, self._columns = shape
        self._model, self._width = model, self._columns + 1
        device, config = model.token_embedding.weight.device, model.config
        entries = self._rows * self._width + 1
        self._canvas = canvas = StaticCanvas(settings, batch, entries, device)
        self._copies, sequences = canvas.copies, batch * canvas.copies
        self._parallel_rows = parallel_rows_for(self._columns, config.radius, sequences, device)
        no_condition = torch.zeros(sequences, config.condition_length, dtype=torch.int64)
        kept = self._parallel_rows + config.radius
        self._ring = RowRing(model, no_condition.to(device), self._width, kept)
        self._context: GridContextRows | None = None
        if config.condition_grids:
            shape_of_grids = sequences, config.condition_grids, self._rows, self._columns
            grids = torch.zeros(shape_of_grids, dtype=torch.int64, device=device)
            self._context = GridContextRows(model, grids, self._parallel_rows)
        self._neighbours = _Neighbours(self._ring, settings, self._rows)
        unused = self._index_rows(np.array([[(-1, 0)] * self._parallel_rows]))[0]
        self._step = IndexedStep(self._take_step, unused.to(device), GraphPool.on(device))
        self._first_row, self._positions = -1, np.empty(0)  # for which indices are loaded

    @torch.inference_mode()
    def sample(
        self,
        prefixes: Tensor,
        uniforms: Tensor,
        *,
        null_prefixes: Tensor | None = None,
        forced: Tensor | None = None,
        on_cells: OnCells | None = None,
    ) -> SampledCodes:
        """As sample_locally, but on_cells is called about once a row."""
        if null_prefixes is not None and self._copies == 2:
            prefixes = torch.cat([prefixes, null_prefixes])
        first_row = self._load(prefixes, uniforms, forced)
        self._load_indices(first_row)
        codes, log_probabilities = (
            self._cells(part[: len(uniforms)])
            for part in (self._canvas.tokens, self._canvas.log_probabilities)
        )
        done = first_row * self._columns
        if on_cells is not None and done:
            on_cells(done, codes)
        run_calls(self._calls(), codes, done, on_cells)
        return results(codes, log_probabilities)

    def _load(self, prefixes: Tensor, uniforms: Tensor, forced: Tensor | None) -> int:
        """Fill the buffers for a batch; returns the first row to read."""
        canvas, config = self._canvas, self._model.config
        known = torch.full(uniforms.shape, -1) if forced is None else forced.expand(uniforms.shape)
        received = F.pad(known, (1, 0), value=config.border_token).flatten(1)
        received = F.pad(received, (0, 1), value=config.border_token)
        canvas.tokens.copy_(received.repeat(self._copies, 1))
        canvas.known.copy_(received >= 0)
        self._cells(canvas.uniforms).copy_(uniforms)
        canvas.log_probabilities.zero_()
        prefixes, grids = self._model.split_tokens(prefixes, self._rows, self._columns)
        self._ring.read_condition(prefixes)
        if self._context is not None:
            self._context.replace_grids(grids)
        return first_row_read(known, config, self._parallel_rows)

    def _cells(self, entries: Tensor) -> Tensor:
        """Entries (B, N) as cells (B, rows, columns)."""
        cells: Tensor = entries[:, :-1].unflatten(1, (self._rows, self._width))[:, :, 1:]
        return cells

    def _index_rows(self, positions: np.ndarray) -> Tensor:
        """A row of indices (7 * G,) for each step's positions (S, G, 2); see _take_step."""
        row, column = torch.from_numpy(positions).unbind(-1)
        used, discarded = row >= 0, self._canvas.discarded
        row = row.clamp(min=0)
        received = row * self._width + column
        indices = [
            torch.where(used, received, discarded),
            torch.where(used & (column < self._columns), received + 1, discarded),
            torch.where(used, self._ring.slots(row, column), 0),
            torch.where(used, self._neighbours.index(row, column), self._neighbours.unused),
            row,
            column,
            # The last column, which receives no context, where the entry is unused.
            torch.where(used, row % self._parallel_rows, 0) * self._width
            + torch.where(used, column, self._columns),
        ]
        return torch.stack(indices, 1).flatten(1)

    def _load_indices(self, first_row: int) -> None:
        """The indices of all steps from the first one of a row on, unless they are loaded."""
        if first_row != self._first_row:
            self._positions = np.array(
                [
                    [(row + first_row if row >= 0 else row, column) for row, column in cells]
                    for cells in staggered_rows(
                        self._rows - first_row,
                        self._width,
                        min(self._model.config.radius, self._columns),
                        self._parallel_rows,
                    )
                ]
            )
            self._step.load(self._index_rows(self._positions).to(self._canvas.tokens.device))
            self._first_row = first_row
        self._step.rewind()
        self._step.capture()

    def _calls(self) -> Iterator[Call]:
        rows, columns = self._positions[..., 0], self._positions[..., 1]
        cells = ((rows >= 0) & (columns < self._columns)).sum(1).tolist()
        starts = (rows >= 0) & (columns == 0)
        for step, count in enumerate(cells):
            if self._context is not None and starts[step].any():
                for row in rows[step, starts[step]].tolist():
                    yield Call(partial(self._context.enter, row), 0)
            yield Call(self._step, count)

    def _take_step(self, indices: Tensor) -> None:
        """One token of each of G rows in progress: read it, draw the code after it, store it."""
        received, drawn, slots, near, rows, columns, context = indices.view(7, -1).unbind()
        added = None
        if self._context is not None:
            added = self._context.kept.flatten(1, 2).index_select(1, context)
        tokens = self._canvas.tokens.index_select(1, received)
        visible, mask, scale = self._neighbours.at(near, len(tokens))
        rotation = self._neighbours.rotation(rows, columns)
        features = self._ring.read_at(tokens, rotation, slots, visible, mask, added)
        self._canvas.store(self._model, drawn, features, scale)


class _Neighbours:
    """What a position attends to, for all positions that differ in it, as tables on the device.

    Positions in the first `radius` rows differ, and then rows with different places in the ring.
    """

    def __init__(self, ring: RowRing, settings: SamplingSettings, rows: int) -> None:
        model, device = ring.model, ring.layers[0].device
        self._kept, self._width, self._top = ring.kept, ring.columns, model.config.radius
        row, column = torch.cartesian_prod(
            torch.arange(self._top + ring.kept, device=device),
            torch.arange(ring.columns, device=device),
        ).unbind(1)
        self.unused = len(row)
        """the index of an unused entry, which reads slot 0"""
        visible, mask = ring.visible(row, column)
        dtype = model.token_embedding.weight.dtype
        padding = (0, -visible.shape[1] % MULTIPLE, 0, 1)
        mask = F.pad(additive_mask(mask, dtype), padding, value=-torch.inf)
        mask[-1] = 0  # attention over nothing is not a number
        self._visible, self._mask = F.pad(visible, padding).to(torch.int32), mask
        self._scales: Tensor | None = None
        if settings.guides:
            scales = [settings.guidance_at(share) for share in ring.visible_shares(row, column)]
            self._scales = torch.tensor([*scales, 1.0], device=device, dtype=logits_dtype(model))[
                :, None
            ]
        self._row_rotations, self._column_rotations = _rotation_tables(model, rows, self._width)

    def index(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Indices (...) of positions at rows and columns (...), which are on the canvas."""
        alike = torch.where(
            rows < self._top, rows, self._top + (rows - self._top).remainder(self._kept)
        )
        return alike * self._width + columns

    def at(self, indices: Tensor, sequences: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Slots (G * M,), mask (P * G, 1, 1, M) and guidance scales (G, 1) at indices (G,)."""
        visible = self._visible.index_select(0, indices).flatten()
        mask = self._mask.index_select(0, indices)[:, None, None].repeat(sequences, 1, 1, 1)
        scale = None if self._scales is None else self._scales.index_select(0, indices)
        return visible, mask, scale

    def rotation(self, rows: Tensor, columns: Tensor) -> Rotation:
        """LocalGPT.rotation of positions at rows and columns (G,)."""
        parts = torch.cat(
            [
                self._row_rotations.index_select(0, rows),
                self._column_rotations.index_select(0, columns),
            ],
            dim=-1,
        )
        return Rotation(*parts.unbind(1))


def _rotation_tables(model: LocalGPT, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Rotation (rows, 2, ..., n / 2) of the pairs rotated by row, and (columns, ...) by column.

    Angles of a row and of a column do not depend on each other.
    """
    device = model.token_embedding.weight.device
    numbers = torch.arange(max(rows, columns), device=device)
    exact = torch.stack(model.rotation(numbers, numbers), dim=1)
    of_rows, of_columns = exact.chunk(2, dim=-1)
    return of_rows[:rows].contiguous(), of_columns[:columns].contiguous()
