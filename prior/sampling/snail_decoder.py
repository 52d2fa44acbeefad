"""Decoding with a PixelSNAIL for many windows, with the interface of Decoder.

The convolutions run over the whole window again for each code, and a cache holds the tokens only:
this baseline is not made for speed. Windows of the same shape share a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from prior.models import PixelSNAIL
from prior.sampling.decoder import Request


class TokenCache:
    """The tokens read so far."""

    def __init__(self, batch: int, length: int, device: torch.device) -> None:
        """Room for `length` tokens of `batch` sequences."""
        self.tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.length = 0  # number of tokens read; set it back to read others in their place


class SnailDecoder:
    """Decoding with a PixelSNAIL in eval mode, whose weights must not change meanwhile.

    A window's codes follow the prefix and the condition's grids. These have the trained window's
    size; a smaller window uses their upper left part.
    """

    def __init__(self, model: PixelSNAIL) -> None:
        self.config, self.model = model.config, model
        self.prefix_length = self.config.sequence_length - self.config.window**2

    @property
    def device(self) -> torch.device:
        return self.model.token_embedding.weight.device

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of all tokens before and in a window."""
        return torch.arange(self.prefix_length + rows * columns, device=self.device)

    def token_order(self, rows: int, columns: int) -> None:
        """None: codes are in raster order."""

    def new_cache(self, batch: int, length: int) -> TokenCache:
        """An empty cache for `length` tokens of `batch` sequences."""
        return TokenCache(batch, length, self.device)

    def cache_bytes(self, batch: int, length: int) -> int:
        """Bytes that such a cache takes."""
        return batch * length * torch.int64.itemsize

    @torch.inference_mode()
    def next_features(self, requests: Sequence[Request[TokenCache]]) -> Tensor:
        """The head's inputs (R, P, width) after each of R requests of P sequences each.

        Extends the requests' caches by their tokens.
        """
        for request in requests:
            end = request.cache.length + request.tokens.shape[1]
            request.cache.tokens[:, request.cache.length : end] = request.tokens
            request.cache.length = end
        return torch.cat([self._forward(list(alike)) for _, alike in groupby(requests, _shape)])

    def _forward(self, requests: Sequence[Request[TokenCache]]) -> Tensor:
        """The same for requests whose windows have the same shape."""
        rows, columns = requests[0].shape
        lengths = [request.cache.length - self.prefix_length for request in requests]
        tokens = torch.stack([request.cache.tokens for request in requests]).flatten(0, 1)
        prefix, codes = tokens[:, : self.prefix_length], tokens[:, self.prefix_length :]
        # Stale codes of an earlier window after the current cell have no effect: the model is
        # causal.
        codes = torch.nn.functional.pad(codes, (0, 1)).unflatten(1, (rows, columns))
        features = self.model.code_features(self._crop(prefix, rows, columns), codes).flatten(1, 2)
        features = features.unflatten(0, (len(requests), -1))
        last: Tensor = features[torch.arange(len(requests)), :, lengths]
        return last

    def _crop(self, prefix: Tensor, rows: int, columns: int) -> Tensor:
        """Condition tokens with grids of the trained window, cropped to grids of rows x columns."""
        side = self.config.window
        prefix, grids = self.config.split_tokens(prefix, side, side)
        return torch.cat([prefix, grids[:, :, :rows, :columns].flatten(1)], dim=1)


def _shape(request: Request[TokenCache]) -> tuple[int, int]:
    return request.shape
