"""Quantizers with a learned codebook: latents -> codes, and codes -> latents.

Every quantizer keeps one contract, tested for all of QUANTIZERS:
`assign(latents) -> codes`, `lookup(codes) -> latents`, `forward(latents) -> Quantized`, which is
both with a gradient and a loss, and `codebook_size`, `code_dim`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError, Registry
from ops.ranks import all_samples, from_first

QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")

DISTANCES_AT_ONCE = 1 << 24  # (positions x codes) in memory at a time: 64 MiB of float32


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """Which quantizer, and its sizes. `levels` is read by fsq, the rest by learned codebooks."""

    kind: str = "vq"
    codebook_size: int = 1024
    code_dim: int = 256
    commitment_weight: float = 0.25
    restart_after: int = 100
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ConfigError(f"codebook_size must be at least 2, found {self.codebook_size}.")


class Quantized(NamedTuple):
    """What a quantizer makes of latents (B, D, h, w)."""

    latents: Tensor  # (B, D, h, w), straight-through gradient
    codes: Tensor  # (B, h, w) int64
    loss: Tensor  # scalar: commitment and codebook terms, weighted


class Quantizer(nn.Module, ABC):
    """The contract. `code_dim` is the number of channels of the latents it takes."""

    codebook_size: int
    code_dim: int

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """Codes, their latents with a straight-through gradient, and the loss to add."""

    @abstractmethod
    def assign(self, latents: Tensor) -> Tensor:
        """Codes (B, h, w) int64 for latents (B, D, h, w); changes no state."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Latents (B, D, h, w) for codes (B, h, w) int64."""


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the nearest row of codebook (K, D) to each of vectors (N, D), Euclidean.

    Works in slices so that the (N, K) distances never stand in memory whole.
    """
    square = codebook.square().sum(dim=1)  # |v|^2 is the same for every code: left out
    rows = max(1, DISTANCES_AT_ONCE // len(codebook))
    return torch.cat(
        [
            torch.addmm(square, part, codebook.T, alpha=-2.0).argmin(dim=1)
            for part in vectors.split(rows)
        ]
    )


@QUANTIZERS.register("vq")
class VectorQuantizer(Quantizer):
    """The paper's quantizer (Esser et al. 2021, eq. 2-4), the commitment weight on its own term.

    A codebook drawn at random collapses to a few codes in small runs, so the codebook starts as
    latents of the first batch, and a code unused for `restart_after` training steps is drawn anew.
    Processes that train together count and draw over all their latents, and stay equal.
    """

    codebook: Tensor
    idle_steps: Tensor
    is_initialised: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.codebook_size, self.code_dim = config.codebook_size, config.code_dim
        self.commitment_weight, self.restart_after = config.commitment_weight, config.restart_after
        self.embedding = nn.Embedding(self.codebook_size, self.code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / self.codebook_size, 1 / self.codebook_size)
        self.register_buffer("idle_steps", torch.zeros(self.codebook_size, dtype=torch.int64))
        self.register_buffer("is_initialised", torch.tensor(False))

    def forward(self, latents: Tensor) -> Quantized:
        if self.training:
            self.initialise(latents)
        codes = self.assign(latents)
        if self.training:
            self._restart_idle_codes(latents, codes)
        quantized = self.lookup(codes)
        commitment_loss = F.mse_loss(latents, quantized.detach())
        codebook_loss = F.mse_loss(quantized, latents.detach())
        loss = codebook_loss + self.commitment_weight * commitment_loss
        # latents + (quantized - latents) differs from quantized in the last bits; without a
        # gradient to pass, the looked-up values themselves are what decode will see.
        if latents.requires_grad:
            quantized = latents + (quantized - latents).detach()
        return Quantized(quantized, codes, loss)

    @torch.no_grad()
    def assign(self, latents: Tensor) -> Tensor:
        vectors = latents.movedim(1, -1).flatten(0, 2)  # (B*h*w, D)
        codes = nearest_codes(vectors, self.embedding.weight)
        return codes.view(latents.shape[0], *latents.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        return self.embedding(codes).movedim(-1, 1)

    @torch.no_grad()
    def initialise(self, latents: Tensor) -> None:
        """Start the codebook as some of latents (B, D, h, w), unless it has been started."""
        if not self.is_initialised:
            self.embedding.weight.copy_(self._draw(latents, self.codebook_size))
            self.is_initialised.fill_(True)

    @torch.no_grad()
    def _restart_idle_codes(self, latents: Tensor, codes: Tensor) -> None:
        self.idle_steps += 1
        self.idle_steps[all_samples(codes).unique()] = 0
        idle = (self.idle_steps >= self.restart_after).nonzero().flatten()
        if len(idle):
            self.embedding.weight[idle] = self._draw(latents, len(idle))
            self.idle_steps[idle] = 0

    @staticmethod
    def _draw(latents: Tensor, count: int) -> Tensor:
        """`count` of the latents (B, D, h, w) at random, jittered: no two codes are the same."""
        vectors = all_samples(latents.detach()).movedim(1, -1).flatten(0, 2)  # (B*h*w, D)
        chosen = vectors[torch.randint(len(vectors), (count,), device=vectors.device)]
        drawn = chosen + 0.01 * vectors.std() * torch.randn_like(chosen)
        return from_first(drawn)  # each process has randomness of its own
