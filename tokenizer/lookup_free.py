"""Quantizers without a learned codebook."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ops.config import ConfigError
from tokenizer.quantizers import QUANTIZERS, Quantized, Quantizer, QuantizerConfig


@QUANTIZERS.register("fsq")
class FiniteScalarQuantizer(Quantizer):
    """FSQ (Mentzer et al. 2023): each channel is bounded and rounded to one of its `levels`.

    The code is the mixed-radix number of the rounded channels, the first the fastest. There is no
    codebook to collapse and no loss term. Latents lie in [-1, 1].
    """

    levels: Tensor
    places: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        size, dim = math.prod(config.levels), len(config.levels)
        if not config.levels or size != config.codebook_size or dim != config.code_dim:
            raise ConfigError(
                f"fsq levels {config.levels} make {size} codes of dimension {dim}; the config "
                f"says codebook_size {config.codebook_size}, code_dim {config.code_dim}. "
                "Make them agree."
            )
        self.codebook_size, self.code_dim = size, dim
        levels = torch.tensor(config.levels)
        places = torch.cat([torch.ones(1, dtype=torch.int64), levels.cumprod(0)[:-1]])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def forward(self, latents: Tensor) -> Quantized:
        bounded = self._bound(latents)
        codes = self._number(bounded)
        quantized = self.lookup(codes).to(latents.dtype)
        if bounded.requires_grad:
            scaled = bounded / self._column(self.levels // 2)
            quantized = scaled + (quantized - scaled).detach()
        return Quantized(quantized, codes, latents.new_zeros(()))

    @torch.no_grad()
    def assign(self, latents: Tensor) -> Tensor:
        return self._number(self._bound(latents))

    def _number(self, bounded: Tensor) -> Tensor:
        """The mixed-radix number (B, h, w) of the nearest levels."""
        digits = bounded.detach().round().long() + self._column(self.levels // 2)
        return (digits * self._column(self.places)).sum(dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes.unsqueeze(1) // self._column(self.places) % self._column(self.levels)
        half_width = self._column(self.levels // 2)
        return (digits - half_width) / half_width

    def _bound(self, latents: Tensor) -> Tensor:
        """Squash channel c to the open interval that rounds to exactly levels[c] integers."""
        half = self._column(self.levels - 1) * (1 + 1e-3) / 2
        offset = self._column((self.levels + 1) % 2) * 0.5  # an even count has no middle level
        shift = (offset / half).atanh()
        return (latents + shift).tanh() * half - offset

    @staticmethod
    def _column(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)
