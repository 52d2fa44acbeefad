"""Quantizers without a codebook: a code numbers the values that its channels are rounded to."""

from __future__ import annotations

import itertools
import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.config import ConfigError
from ops.ranks import ranks_here
from tokenizer.quantizers import (
    MOST_BITS,
    QUANTIZERS,
    Quantized,
    Quantizer,
    QuantizerConfig,
    as_vectors,
    straight_through,
)

LEVEL_BITS = 6  # at most in one level of lfq's codes: a prior predicts a level by one softmax


@QUANTIZERS.register("fsq")
class FiniteScalarQuantizer(Quantizer):
    """FSQ (Mentzer et al. 2023): each channel is bounded and rounded to one of its `levels`.

    The code is the mixed-radix number of the rounded channels, the first one varying fastest. There
    is no codebook that could collapse and no loss term. Latents lie in [-1, 1].
    """

    levels: Tensor
    places: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        size, dim = math.prod(config.levels), len(config.levels)
        if not config.levels or size != config.codebook_size or dim != config.code_dim:
            raise ConfigError(
                f"fsq levels {config.levels} make {size} codes of dimension {dim}; the config "
                f"says codebook_size {config.codebook_size}, code_dim {config.code_dim}. "
                "Make them agree."
            )
        super().__init__(config)
        places = list(itertools.accumulate(config.levels[:-1], operator.mul, initial=1))
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    @property
    def code_levels(self) -> tuple[int, ...]:
        levels = tuple(self.levels.tolist())
        return levels if len(levels) > 1 else ()

    def quantize(self, latents: Tensor) -> Quantized:
        bounded = self._bound(latents)
        codes = self._number(bounded)
        scaled = bounded / self._column(self.levels // 2)
        quantized = straight_through(scaled, self.lookup(codes).to(latents.dtype))
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


@QUANTIZERS.register("lfq")
class LookupFreeQuantizer(Quantizer):
    """LFQ (Yu et al. 2023, section 3.1): each channel's sign is a bit, the first the lowest.

    An entropy loss makes each position's distribution confident and all codes equally frequent.
    Bits are independent, so a position's entropy is a sum over its bits, and the mean distribution
    over all 2**D codes is one product of two matrices, of the lower and of the upper half of the
    bits: no (positions, codes) array is formed. Latents are -1 or 1.
    """

    places: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        if config.code_dim > MOST_BITS or config.codebook_size != 2**config.code_dim:
            raise ConfigError(
                f"lfq has a code for every sign of code_dim {config.code_dim} channels, "
                f"2**{config.code_dim}; the config says codebook_size {config.codebook_size}."
            )
        super().__init__(config)
        self.commitment_weight = config.commitment_weight
        self.entropy_weight = config.entropy_weight
        self.entropy_temperature = config.entropy_temperature
        self.register_buffer("places", 2 ** torch.arange(self.code_dim), persistent=False)

    @property
    def code_levels(self) -> tuple[int, ...]:
        """Groups of consecutive bits, about equally many and at most LEVEL_BITS."""
        if self.code_dim < 2:
            return ()
        count = max(2, -(-self.code_dim // LEVEL_BITS))
        return tuple(2 ** ((self.code_dim + group) // count) for group in range(count))

    def quantize(self, latents: Tensor) -> Quantized:
        codes = self.assign(latents)
        quantized = self.lookup(codes).to(latents.dtype)
        loss = self.commitment_weight * F.mse_loss(latents, quantized)
        if self.entropy_weight:
            loss = loss + self.entropy_weight * self._entropy_loss(latents)
        return Quantized(straight_through(latents, quantized), codes, loss)

    @torch.no_grad()
    def assign(self, latents: Tensor) -> Tensor:
        return ((latents > 0) * self.places.view(-1, 1, 1)).sum(dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        bits = codes.unsqueeze(1) // self.places.view(-1, 1, 1) % 2
        return 2.0 * bits - 1.0

    def _entropy_loss(self, latents: Tensor) -> Tensor:
        """Mean entropy of the distributions minus the entropy of the mean distribution, in nats."""
        # |z - 1|^2 and |z + 1|^2 differ by 4z, and a bit is softmax(-distances / temperature).
        logits = as_vectors(latents) * (4 / self.entropy_temperature)  # (N, D), of a bit being set
        probs = logits.sigmoid()
        each = (F.softplus(logits) - logits * probs).sum(dim=1).mean()
        half = self.code_dim // 2
        lower, upper = _code_probs(logits[:, :half]), _code_probs(logits[:, half:])
        mean = upper.T @ lower / len(logits)  # (2**(D-half), 2**half)
        # The mean over all processes; each passes on the gradient of its own part, averaged later.
        mean = mean + (ranks_here().mean(mean.detach()) - mean).detach()
        # The probability of most of 2**D codes underflows to 0, where log has no gradient.
        of_mean = -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()
        return each - of_mean


def _code_probs(logits: Tensor) -> Tensor:
    """Probabilities (N, 2**bits) of all codes of some bits, from the bits' logits (N, bits)."""
    codes = torch.arange(2 ** logits.shape[1], device=logits.device)
    places = 2 ** torch.arange(logits.shape[1], device=logits.device)
    bits = (codes.unsqueeze(1) // places % 2).to(logits.dtype)  # (2**bits, bits)
    return (F.logsigmoid(logits) @ bits.T + F.logsigmoid(-logits) @ (1 - bits).T).exp()
