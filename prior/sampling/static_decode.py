"""Static decoding: sampling whose steps have fixed shapes and take nothing from the host.

A plain sampler decides in Python, step by step, which cells to draw and which tokens to read; a GPU
waits for it most of the time. Here the whole schedule is computed ahead from the geometry of the
canvas: which cell each row in progress draws, which tokens it reads, where their keys and values
are kept. It is on the device as tables of indices (step_graphs.py), and so are the codes, uniform
numbers and log-probabilities (StaticCanvas). The host only starts one step after another, and
looks at the codes about once a row, for progress, previews and interruption.

static_local.py has the steps of a LocalGPT, static_windows.py those of a GPT with a sliding window.
Both draw the same codes as the plain samplers, up to rounding. Priors with another order than
raster order and PixelSNAILs are sampled by the plain sampler only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ops.config import ConfigError
from prior.models import GPTConfig, LocalConfig, PriorConfig, PriorModel
from prior.orderings import ROW_MAJOR
from prior.sampling.distributions import SampledCodes, SamplingSettings
from prior.sampling.drawing import draw_codes

MULTIPLE = 8  # of keys: fused attention copies a mask of another length in every layer
OnCells = Callable[[int, Tensor], None]


def decodes_statically(config: PriorConfig, wanted: bool | None, device: torch.device) -> bool:
    """Whether to sample from a prior by static decoding: by default on GPUs, where it can be.

    Raises ConfigError where it is `wanted` and cannot be.
    """
    possible = isinstance(config, LocalConfig) or (
        isinstance(config, GPTConfig) and config.ordering == ROW_MAJOR
    )
    if wanted and not possible:
        raise ConfigError(
            "static_decode needs a GPT in raster order or a prior without windows; this one is "
            "sampled by the plain sampler only. Leave static_decode out."
        )
    return possible and (device.type == "cuda" if wanted is None else wanted)


class Call(NamedTuple):
    """One call of a step, or work between steps."""

    run: Callable[[], None]
    cells: int  # number of cells of the canvas that are done with it


class StaticCanvas:
    """Entries (.., N) for the cells of a batch: tokens, known cells, uniforms, log-probabilities.

    Their memory stays where it is. The last of the N entries holds what is to be discarded. More
    tokens may follow, which are only read.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        batch: int,
        entries: int,
        device: torch.device,
        more_tokens: int = 0,
    ) -> None:
        """Room for a batch of `batch` samples, twice as many sequences when settings.guides."""
        self._settings, self._batch = settings, batch
        self.copies = 2 if settings.guides else 1
        self.discarded = entries - 1
        shape = batch, entries
        sequences, tokens = batch * self.copies, entries + more_tokens
        self.tokens = torch.zeros(sequences, tokens, dtype=torch.int64, device=device)
        self.known = torch.zeros(shape, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(shape, dtype=torch.float64, device=device)
        self.log_probabilities = torch.zeros(shape, device=device)

    def store(
        self, model: PriorModel, entries: Tensor, features: Tensor, scale: Tensor | None
    ) -> None:
        """Draw codes after features (P, G, width) and store them at `entries` (G,) unless known.

        `scale` (G, 1) is the guidance scale; None without guidance.
        """
        numbers = self.uniforms.index_select(1, entries)
        # Unused entries are drawn, too, so that every draw has the same shape.
        codes, logs = draw_codes(model, features, numbers, self._settings, scale)
        known = self.known.index_select(1, entries)
        codes = self.tokens[: self._batch].index_select(1, entries).where(known, codes)
        self.tokens.index_copy_(1, entries, codes.repeat(self.copies, 1))
        self.log_probabilities.index_copy_(1, entries, logs.masked_fill(known, 0))


def run_calls(
    calls: Iterable[Call], codes: Tensor, done: int, on_cells: OnCells | None = None
) -> None:
    """Make the calls that draw the open cells of `codes` (B, rows, columns), `done` being done.

    on_cells(n, codes) is called about once a row, when n more cells are done.
    """
    columns, reported = codes.shape[2], done
    for run, cells in calls:
        run()
        done += cells
        if done // columns > reported // columns:
            _wait_for(codes.device)
            if on_cells is not None:
                on_cells(done - reported, codes)
            reported = done


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what was started.

    Otherwise the host would be a whole canvas ahead, and an interruption would have no effect.
    """
    if device.type == "cuda":
        event = torch.cuda.Event(blocking=True)  # other threads may use the core meanwhile
        event.record(torch.cuda.current_stream(device))
        event.synchronize()


def results(codes: Tensor, log_probabilities: Tensor) -> SampledCodes:
    """Copies, since the buffers are used again."""
    return SampledCodes(codes.clone(), log_probabilities.clone())
