"""Static decoding from a GPT with a sliding window of any stride.

The same cells, windows and caches as in sample_codes, with the indices of all calls computed ahead:
see prior.sampling.static_decode and prior.sampling.window_schedule. All caches are one tensor for
each layer, and a call gathers those of its windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.windows import Grid, Window, check_stride
from prior.conditions import Prefix
from prior.models import GPT, Block, Rotation
from prior.orderings import ROW_MAJOR
from prior.sampling.distributions import SampledCodes, SamplingSettings
from prior.sampling.drawing import logits_dtype
from prior.sampling.generation_config import DEFAULT_CACHE_MEMORY
from prior.sampling.kv_cache import cache_bytes
from prior.sampling.local import additive_mask
from prior.sampling.sliding_window import parallel_rows_for
from prior.sampling.static_decode import MULTIPLE, Call, OnCells, StaticCanvas, results, run_calls
from prior.sampling.step_graphs import GraphPool, IndexedStep
from prior.sampling.window_schedule import (
    DrawCall,
    ReadCall,
    Schedule,
    most_rows_at_once,
    window_schedule,
)

Bucket = tuple[int, int]  # windows and tokens of each


class StaticWindowSampler:
    """Samples batches of one shape from a GPT in eval mode, whose weights stay in place."""

    @torch.inference_mode()
    def __init__(
        self,
        model: GPT,
        settings: SamplingSettings,
        shape: tuple[int, int, int],
        *,
        stride: int,
        cache_memory: int = DEFAULT_CACHE_MEMORY,
        flush_every_rows: int | None = None,
    ) -> None:
        """For codes of `shape` (B, rows, columns); see sample_codes.

        Raises ConfigError for a stride that does not suit the window.
        """
        config, weight = model.config, model.token_embedding.weight
        assert config.ordering == ROW_MAJOR
        self._model, self._device = model, weight.device
        batch, rows, columns = shape
        check_stride(stride, config.window)
        self._grid, self._flush = Grid(rows, columns, config.window, stride), flush_every_rows
        self._prefix_length = config.condition_length
        self._windows = _Windows(self._grid, self._prefix_length)
        self._canvas = StaticCanvas(
            settings, batch, rows * columns + 1, weight.device, self._windows.prefix_tokens
        )
        self._sequences = batch * self._canvas.copies
        self._positions = model.positions(*self._windows.shape)
        # The window's last code is never read.
        length = len(self._positions) - 1
        self._length = length + -length % MULTIPLE
        one_cache = cache_bytes(config, weight, self._sequences, length)
        self._max_caches = max(1, cache_memory // one_cache)
        self._parallel_rows = parallel_rows_for(
            weight.device, self._sequences, self._grid, self._max_caches
        )
        # At most, whatever cells are known: then no shape of a call depends on them.
        at_once = most_rows_at_once(self._grid)
        self._drawn_at_once = min(at_once, self._parallel_rows, rows, flush_every_rows or rows)
        self._times = torch.arange(self._length, device=weight.device)
        self._rotation = model.rotation(self._positions)
        self._scales = self._scales_of(settings) if settings.guides else None
        self._pool = GraphPool.on(weight.device)
        self._steps: dict[Bucket | None, IndexedStep] = {}  # the drawing step's key is None
        self._layers: list[Tensor] = []
        self._slots = 0
        self._schedule: Schedule | None = None
        self._scheduled: bytes | None = None  # the known cells of that schedule

    def _scales_of(self, settings: SamplingSettings) -> Tensor:
        """Guidance scale (length, 1) of the code after each token."""
        cells = self._windows.shape[0] * self._windows.shape[1]
        before = self._prefix_length - 1  # tokens that no code of the window precedes
        scales = [
            settings.guidance_at(max(0, time - before) / cells) if time - before < cells else 1.0
            for time in range(self._length)
        ]
        dtype = logits_dtype(self._model)
        return torch.tensor(scales, dtype=dtype, device=self._device)[:, None]

    @torch.inference_mode()
    def sample(
        self,
        prefix: Prefix,
        uniforms: Tensor,
        *,
        forced: Tensor | None = None,
        on_cells: OnCells | None = None,
    ) -> SampledCodes:
        """As sample_codes, with `uniforms` (B, rows, columns); on_cells is called about once a row.

        prefix(window) must not depend on the codes: it is called ahead for all windows.
        """
        known = self._load(prefix, uniforms, forced)
        schedule = self._load_schedule(known)
        batch = len(uniforms)
        codes, log_probabilities = (
            part[:batch, : self._canvas.discarded].unflatten(1, uniforms.shape[1:])
            for part in (self._canvas.tokens, self._canvas.log_probabilities)
        )
        done = 0 if known is None else int(known.sum())
        if on_cells is not None and known is not None:
            on_cells(done, codes)
        run_calls(self._calls(schedule), codes, done, on_cells)
        return results(codes, log_probabilities)

    def _load(self, prefix: Prefix, uniforms: Tensor, forced: Tensor | None) -> Tensor | None:
        """Fill the buffers for a batch; returns which cells (rows, columns) all samples know."""
        canvas, cells = self._canvas, self._canvas.discarded
        canvas.log_probabilities.zero_()
        canvas.uniforms[:, :cells] = uniforms.flatten(1)
        codes = torch.full(uniforms.shape, -1)
        if forced is not None:
            codes[:] = forced
        canvas.tokens[:, :cells] = codes.flatten(1).repeat(canvas.copies, 1)
        canvas.tokens[:, cells] = 0  # any code: padding is read there
        canvas.known.copy_(F.pad(codes.flatten(1) >= 0, (0, 1)))
        tokens = torch.cat([prefix(window) for window in self._windows.all()], dim=1)
        canvas.tokens[:, cells + 1 :] = tokens
        return None if forced is None else (codes >= 0).all(0)

    def _allocate(self, slots: int) -> None:
        """Room for the caches of `slots` windows, and one that holds what is to be discarded."""
        if slots <= self._slots:
            return
        config, weight = self._model.config, self._model.token_embedding.weight
        self._steps.clear()  # their graphs use the memory
        self._layers.clear()
        self._slots = slots
        shape = 2, self._sequences, slots + 1, self._length, config.num_heads, config.head_dim
        # Zeros, since masked values count as 0 only if they are numbers.
        self._layers += [weight.new_zeros(shape) for _ in range(config.num_layers)]

    # --- indices of the calls

    def _load_schedule(self, known: Tensor | None) -> Schedule:
        """The schedule around known cells, with the indices of its calls loaded."""
        cells = None if known is None else known.numpy().tobytes()
        if self._schedule is None or cells != self._scheduled:
            self._schedule, self._scheduled = self._new_schedule(known), cells
            self._allocate(self._schedule.slots)
            rows: dict[Bucket | None, list[np.ndarray]] = {}
            for call in self._schedule.calls:
                rows.setdefault(_bucket_of(call), []).append(self._index_row(call))
            for bucket, of_calls in rows.items():
                if bucket not in self._steps:
                    self._steps[bucket] = self._new_step(bucket)
                self._steps[bucket].load(torch.from_numpy(np.stack(of_calls)).to(self._device))
        for step in self._steps.values():
            step.rewind()
            step.capture()
        return self._schedule

    def _new_schedule(self, known: Tensor | None) -> Schedule:
        return window_schedule(
            self._grid,
            prefix_length=self._prefix_length,
            parallel_rows=self._parallel_rows,
            drawn_at_once=self._drawn_at_once,
            sequences=self._sequences,
            max_caches=self._max_caches,
            known=None if known is None else known.tolist(),
            flush_every_rows=self._flush,
        )

    def _new_step(self, bucket: Bucket | None) -> IndexedStep:
        if bucket is None:
            function, unused = self._draw, self._index_row(DrawCall([], []))
        else:
            function, unused = partial(self._read, bucket), self._index_row(ReadCall([], *bucket))
        return IndexedStep(function, torch.from_numpy(unused).to(self._device), self._pool)

    def _calls(self, schedule: Schedule) -> Iterator[Call]:
        for call in schedule.calls:
            cells = len(call.cells) if isinstance(call, DrawCall) else 0
            yield Call(self._steps[_bucket_of(call)], cells)

    def _index_row(self, call: ReadCall | DrawCall) -> np.ndarray:
        """Indices of a call of k windows and T tokens of each: entries of the tokens (k, T), places
        of their keys and values (k, T), slots (k,), and for a drawing call the cells' entries (k,).
        """
        drawing, discarded = isinstance(call, DrawCall), self._canvas.discarded
        count, tokens = _bucket_of(call) or (self._drawn_at_once, 1)
        entries = np.full((count, tokens), discarded)
        places = np.full((count, tokens), self._slots * self._length)
        slots = np.full(count, self._slots)
        for number, (slot, window, first, end) in enumerate(call.reads):
            entries[number, : end - first] = self._windows.entries(window)[first:end]
            places[number, : end - first] = slot * self._length + np.arange(first, end)
            slots[number] = slot
        drawn = np.full(count if drawing else 0, discarded)
        if isinstance(call, DrawCall):
            for number, (row, column) in enumerate(call.cells):
                drawn[number] = row * self._grid.columns + column
        return np.concatenate([entries.ravel(), places.ravel(), slots, drawn])

    # --- the steps

    def _read(self, bucket: Bucket, indices: Tensor) -> None:
        """Read tokens: only their keys and values are kept."""
        (windows, tokens), blocks = bucket, self._model.blocks
        count = windows * tokens
        entries, places, slots = indices.split([count, count, windows])
        latents, rotation, attend = self._start(entries, places, slots)
        for layer, block in enumerate(blocks[:-1]):
            latents = block(latents, rotation, partial(attend, layer))
        # Of the last block nothing is needed but the keys and values.
        last = blocks[-1]
        assert isinstance(last, Block)
        keep = partial(self._keep, len(blocks) - 1, places)
        last.attention(last.attention_norm(latents), rotation, keep)

    def _draw(self, indices: Tensor) -> None:
        """Read one token of each window, draw the code after it and store it."""
        model = self._model
        entries, places, slots, drawn = indices.view(4, -1).unbind()
        latents, rotation, attend = self._start(entries, places, slots)
        for layer, block in enumerate(model.blocks):
            latents = block(latents, rotation, partial(attend, layer))
        features = model.norm(latents).view(self._sequences, len(drawn), -1)
        scale = None
        if self._scales is not None:
            scale = self._scales.index_select(0, places.remainder(self._length))
        self._canvas.store(model, drawn, features, scale)

    def _start(
        self, entries: Tensor, places: Tensor, slots: Tensor
    ) -> tuple[Tensor, Rotation | None, partial[Tensor]]:
        """Input of the first block (P * k, T, width), rotation, and the attention of a layer."""
        sequences, windows = self._sequences, len(slots)
        times = places.remainder(self._length)
        tokens = self._canvas.tokens.index_select(1, entries)
        positions = self._positions.index_select(0, times)
        latents = self._model.embedded(tokens, positions).unflatten(1, (windows, -1)).flatten(0, 1)
        rotation = None
        if self._rotation is not None:
            rotation = Rotation(
                *(
                    part.index_select(0, times).view(windows, 1, -1, *part.shape[1:])
                    .repeat(sequences, 1, 1, 1, 1, 1)
                    for part in self._rotation
                )
            )  # fmt: skip
        visible = self._times <= times.view(windows, 1, -1, 1)
        mask = additive_mask(visible, latents.dtype).repeat(sequences, 1, 1, 1)
        return latents, rotation, partial(self._attend, places, slots, mask)

    def _attend(
        self,
        places: Tensor,
        slots: Tensor,
        mask: Tensor,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        self._keep(layer, places, queries, keys, values)
        keys, values = (  # (P * k, heads, length, head_dim)
            cached.index_select(1, slots).flatten(0, 1).transpose(1, 2)
            for cached in self._layers[layer].unbind()
        )
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

    def _keep(
        self, layer: int, places: Tensor, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Keep keys and values (P * k, heads, T, head_dim) at places (k * T,)."""
        cached = self._layers[layer].flatten(2, 3)  # (2, P, places, heads, head_dim)
        for part, new in zip(cached.unbind(), (keys, values), strict=True):
            part.index_copy_(1, places, new.transpose(1, 2).reshape(len(part), -1, *part.shape[2:]))
        return queries


class _Windows:
    """The windows of a grid and the entries of their tokens in a StaticCanvas.

    The tokens before each window follow the entries of the grid's cells and the discarded one.
    """

    def __init__(self, grid: Grid, prefix_length: int) -> None:
        self._grid, self._prefix_length = grid, prefix_length
        self.shape = min(grid.window, grid.rows), min(grid.window, grid.columns)
        rows = dict.fromkeys(grid.window_of(row, 0).row for row in range(grid.rows))
        columns = dict.fromkeys(grid.window_of(0, column).column for column in range(grid.columns))
        self._numbers = {
            Window(row, column, *self.shape): number
            for number, (row, column) in enumerate(
                (row, column) for row in rows for column in columns
            )
        }
        self._entries: dict[Window, np.ndarray] = {}

    def all(self) -> list[Window]:
        """All windows, in the order of their prefixes."""
        return list(self._numbers)

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before all windows together."""
        return len(self._numbers) * self._prefix_length

    def entries(self, window: Window) -> np.ndarray:
        """Entries of the tokens before and in a window."""
        if window not in self._entries:
            rows, columns = (
                np.arange(first, first + count)
                for first, count in zip(window[:2], self.shape, strict=True)
            )
            cells = rows[:, None] * self._grid.columns + columns
            first = self._grid.rows * self._grid.columns + 1
            first += self._numbers[window] * self._prefix_length
            prefix = np.arange(first, first + self._prefix_length)
            self._entries[window] = np.concatenate([prefix, cells.ravel()])
        return self._entries[window]


def _bucket_of(call: ReadCall | DrawCall) -> Bucket | None:
    return None if isinstance(call, DrawCall) else (call.windows, call.tokens)
