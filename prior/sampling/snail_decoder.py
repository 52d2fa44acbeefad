"""Reading on with a PixelSNAIL: what it foretells next in many windows at once.

A convolutional baseline may take its time: it goes through its window again for each code, and what
is kept are the tokens alone. Windows of one shape, as all of a canvas are, are one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from prior.models import PixelSNAIL
from prior.sampling.decoder import Run


class TokenCache:
    """The tokens that were read."""

    def __init__(self, batch: int, length: int, device: torch.device) -> None:
        """Room for `length` tokens of `batch` sequences."""
        self.tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.length = 0  # tokens read so far; set it back to read others


class SnailDecoder:
    """Reads with a PixelSNAIL, which is not in training and does not change meanwhile.

    Before a window's codes come the prefix and then each grid of the condition, of the trained
    window's size: where the window is smaller, it is the grid's upper left part.
    """

    def __init__(self, model: PixelSNAIL) -> None:
        self.config, self._model = model.config, model
        self.prefix_length = self.config.sequence_length - self.config.window**2

    @property
    def device(self) -> torch.device:
        return self._model.token_embedding.weight.device

    def positions(self, rows: int, columns: int) -> Tensor:
        """The numbers of all tokens before and in a window."""
        return torch.arange(self.prefix_length + rows * columns, device=self.device)

    def token_order(self, rows: int, columns: int) -> None:
        """Codes come row by row."""

    def new_cache(self, batch: int, length: int) -> TokenCache:
        """An empty cache for `length` tokens of `batch` sequences."""
        return TokenCache(batch, length, self.device)

    def cache_bytes(self, batch: int, length: int) -> int:
        """Memory that such a cache takes."""
        return batch * length * torch.int64.itemsize

    @torch.inference_mode()
    def read(self, runs: Sequence[Run[TokenCache]]) -> Tensor:
        """Logits (R, P, K) of the code after each of R runs of P sequences each."""
        for run in runs:
            end = run.cache.length + run.tokens.shape[1]
            run.cache.tokens[:, run.cache.length : end] = run.tokens
            run.cache.length = end
        return torch.cat([self._next(list(alike)) for _, alike in groupby(runs, _shape)])

    def _next(self, runs: Sequence[Run[TokenCache]]) -> Tensor:
        """What `read` does, of runs in windows of one shape."""
        rows, columns = runs[0].shape
        numbers = [run.cache.length - self.prefix_length for run in runs]
        tokens = torch.stack([run.cache.tokens for run in runs]).flatten(0, 1)
        prefix, codes = tokens[:, : self.prefix_length], tokens[:, self.prefix_length :]
        # What lies behind a cell does not weigh on it, be it a former window's.
        codes = torch.nn.functional.pad(codes, (0, 1)).unflatten(1, (rows, columns))
        features = self._model.features(self._cut(prefix, rows, columns), codes).flatten(1, 2)
        features = features.unflatten(0, (len(runs), -1))
        return self._model.head(features[torch.arange(len(runs)), :, numbers])

    def _cut(self, prefix: Tensor, rows: int, columns: int) -> Tensor:
        """Condition tokens with grids of the trained window, with grids of rows x columns."""
        side = self.config.window
        prefix, grids = self.config.split(prefix, side, side)
        return torch.cat([prefix, grids[:, :, :rows, :columns].flatten(1)], dim=1)


def _shape(run: Run[TokenCache]) -> tuple[int, int]:
    return run.shape
