"""The contract of all quantizers, their registry, and what they count of their codes.

Every quantizer is tested for the same promises: `assign(latents) -> codes`, `lookup(codes) ->
latents`, `forward(latents) -> Quantized`, which is both with a gradient and a loss, and
`codebook_size`, `code_dim`. They live in vector_quantizers.py (a learned codebook),
gumbel_quantizer.py and lookup_free.py (none).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ops.config import ConfigError, Registry
from ops.ranks import ranks_here

QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")

VALUES_AT_ONCE = 1 << 24  # (positions x codes) in memory at a time: 64 MiB of float32


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """Which quantizer, its sizes, and how it learns. Each reads the fields that name it."""

    kind: str = "vq"
    codebook_size: int = 1024
    code_dim: int = 256
    levels: tuple[int, ...] = ()
    """fsq: levels of each channel; their product is codebook_size"""
    commitment_weight: float = 0.25
    """vq, l2, simvq, ema, lfq: beta, how strongly latents are drawn to their codes"""
    codebook_weight: float = 1.0
    """vq, l2, simvq: how strongly codes are drawn to their latents"""
    restart_after: int = 100
    """training forwards without use after which a code is dead; learned codebooks draw it anew"""
    decay: float = 0.99
    """of the running statistics, and of the codebook of ema"""
    temperature: float = 1.0
    """gumbel: at step 0"""
    final_temperature: float = 1 / 16
    """gumbel: from step temperature_steps on, after half a cosine"""
    temperature_steps: int = 150_000
    kl_weight: float = 5e-4
    """gumbel: of the distance to even use, reached in a line over kl_steps"""
    kl_steps: int = 5_000
    entropy_weight: float = 0.1
    """lfq: of the entropy loss"""
    entropy_temperature: float = 0.01
    """lfq: softness of the assignments that the entropies are taken of"""

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ConfigError(f"codebook_size must be at least 2, found {self.codebook_size}.")
        if self.restart_after < 1:
            raise ConfigError(f"restart_after must be at least 1, found {self.restart_after}.")
        for name in ("temperature", "final_temperature", "entropy_temperature"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, found {getattr(self, name)}.")


class Quantized(NamedTuple):
    """What a quantizer makes of latents (B, D, h, w)."""

    latents: Tensor  # (B, D, h, w), with a gradient to what they were made of
    codes: Tensor  # (B, h, w) int64
    loss: Tensor  # scalar, weighted


class Quantizer(nn.Module, ABC):
    """The contract. `code_dim` is the number of channels of the latents it takes and gives.

    `step` is the training step that schedules are functions of; whoever trains sets it before
    each forward, and nothing else remembers it. Two running statistics are kept of all processes'
    codes: `share`, how much of all codes each one is, and `idle_steps`, the training forwards
    since it was last chosen.
    """

    share: Tensor  # (K,) float32, decaying; sums to less than 1 at first
    idle_steps: Tensor  # (K,) int64
    step = 0

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.codebook_size, self.code_dim = config.codebook_size, config.code_dim
        self.restart_after, self.decay = config.restart_after, config.decay
        self.register_buffer("share", torch.zeros(self.codebook_size))
        self.register_buffer("idle_steps", torch.zeros(self.codebook_size, dtype=torch.int64))

    def forward(self, latents: Tensor) -> Quantized:
        """Codes and their latents for latents (B, D, h, w) in float32; learns when training."""
        if not self.training:
            return self.quantize(latents)
        self.prepare(latents.detach())
        quantized = self.quantize(latents)
        self._count(quantized.codes)
        self.learn(latents.detach(), quantized.codes)
        return quantized

    @abstractmethod
    def quantize(self, latents: Tensor) -> Quantized:
        """Codes, their latents with a gradient, and the loss to add; changes no state."""

    @abstractmethod
    def assign(self, latents: Tensor) -> Tensor:
        """Codes (B, h, w) int64 for latents (B, D, h, w), always the same; changes no state."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Latents (B, D, h, w) for codes (B, h, w) int64."""

    @property
    def needs_start(self) -> bool:
        """Whether there is a codebook that still has to start as latents of a batch."""
        return False

    def prepare(self, latents: Tensor) -> None:
        """Called in training before latents (B, D, h, w) are quantized: start, restart codes."""

    def learn(self, latents: Tensor, codes: Tensor) -> None:
        """Called in training once they were: for what no gradient teaches."""

    def metrics(self) -> dict[str, Tensor]:
        """The running statistics as scalars to log.

        codebook_usage: share of the codes that are in use; perplexity: as many codes, equally
        frequent, would carry as much; dead_codes: those not chosen for `restart_after` forwards.
        """
        alive = self.idle_steps < self.restart_after
        share = self.share / self.share.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return {
            "codebook_usage": (alive & (self.share > 0)).float().mean(),
            "perplexity": torch.special.entr(share).sum().exp(),
            "dead_codes": (~alive).sum(),
        }

    @torch.no_grad()
    def _count(self, codes: Tensor) -> None:
        counts = torch.bincount(codes.flatten(), minlength=self.codebook_size)
        share = ranks_here().mean(counts.float() / codes.numel())
        self.share.lerp_(share, 1 - self.decay)
        self.idle_steps.copy_(torch.where(share > 0, 0, self.idle_steps + 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name, value in self._untold().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _untold(self) -> Mapping[str, Tensor]:
        """What to take for the buffers that weights made for use alone say nothing of."""
        return {
            "share": torch.zeros_like(self.share),
            "idle_steps": torch.zeros_like(self.idle_steps),
        }


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` with the gradient of `latents` (Bengio et al. 2013)."""
    # latents + (quantized - latents) differs from quantized in the last bits; without a gradient
    # to pass, the looked-up values themselves are what decode will see.
    return latents + (quantized - latents).detach() if latents.requires_grad else quantized


def as_vectors(latents: Tensor) -> Tensor:
    """Latents (B, D, h, w) as one vector a position: (B*h*w, D)."""
    return latents.movedim(1, -1).flatten(0, 2)


def in_slices(vectors: Tensor, codebook_size: int) -> tuple[Tensor, ...]:
    """Vectors (N, D) in parts so small that a part's values for every code fit in memory."""
    return vectors.split(max(1, VALUES_AT_ONCE // codebook_size))


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the nearest row of codebook (K, D) to each of vectors (N, D), Euclidean.

    The (N, K) distances never stand in memory whole.
    """
    square = codebook.square().sum(dim=1)  # |v|^2 is the same for every code: left out
    parts = in_slices(vectors, len(codebook))
    return torch.cat(
        [torch.addmm(square, part, codebook.T, alpha=-2.0).argmin(dim=1) for part in parts]
    )
