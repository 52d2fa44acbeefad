"""The interface of all quantizers, their registry and their running statistics.

`assign(latents)` gives codes, `lookup(codes)` gives latents, and `forward(latents)` gives both with
gradients and a loss; contract tests hold every registered quantizer to this. They are defined in
vector_quantizers.py (learned codebooks), gumbel_quantizer.py and lookup_free.py (no codebook).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from ops.config import ConfigError, Count, Range, Registry, Share, Weight, check_fields
from ops.ranks import ranks_here

QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")

MOST_BITS = 24  # of a code
Temperature = Annotated[float, Range(above=0, most=1e6)]
Steps = Annotated[int, Range(least=0)]
MAX_VALUES = 1 << 24  # positions x codes in memory at a time: 64 MiB of float32


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """Which quantizer, its sizes and how it trains; fields name the quantizers that use them."""

    kind: str = "vq"
    codebook_size: Annotated[int, Range(least=2, most=2**MOST_BITS)] = 1024
    code_dim: Annotated[int, Range(least=1, most=2**16)] = 256
    levels: tuple[Annotated[int, Range(least=2, most=2**16)], ...] = ()
    """fsq: levels of each channel; their product is codebook_size"""
    commitment_weight: Weight = 0.25
    """vq, l2, simvq, ema, lfq: beta, weight of the term that moves latents to their codes"""
    codebook_weight: Weight = 1.0
    """vq, l2, simvq: weight of the term that moves codes to their latents"""
    restart_after: Count = 100
    """training forwards without use after which a code is dead; vq, l2, ema reinitialise dead codes
    at each training step that is a multiple of this number"""
    decay: Share = 0.99
    """of the running statistics, and of ema's codebook"""
    temperature: Temperature = 1.0
    """gumbel: at step 0"""
    final_temperature: Temperature = 1 / 16
    """gumbel: from step temperature_steps on, reached along half a cosine"""
    temperature_steps: Steps = 150_000
    kl_weight: Weight = 5e-4
    """gumbel: weight of the KL term, reached linearly over kl_steps"""
    kl_steps: Steps = 5_000
    entropy_weight: Weight = 0.1
    """lfq: weight of the entropy loss"""
    entropy_temperature: Temperature = 0.01
    """lfq: temperature of the distributions in the entropy loss"""

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.levels) > MOST_BITS:
            raise ConfigError(
                f"levels must be at most {MOST_BITS} numbers, found {len(self.levels)}."
            )


class Quantized(NamedTuple):
    """A quantizer's result for latents (B, D, h, w)."""

    latents: Tensor  # (B, D, h, w), with a gradient to the input latents
    codes: Tensor  # (B, h, w) int64
    loss: Tensor  # scalar, weighted


class Quantizer(nn.Module, ABC):
    """The interface. `code_dim` is the number of channels of input and output latents.

    `step` is the training step, which schedules depend on; the training loop sets it before each
    forward, and it is not part of the state. Two running statistics cover the codes of all
    processes: `share`, each code's relative frequency, and `idle_steps`, the training forwards
    since it was last assigned.
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
        """Quantized latents (B, D, h, w) in float32; updates the state in training."""
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
        """Codes (B, h, w) int64 for latents (B, D, h, w); deterministic, changes no state."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Latents (B, D, h, w) for codes (B, h, w) int64."""

    @property
    def code_levels(self) -> tuple[int, ...]:
        """Two or more numbers of values whose product is K, where codes are made of several values.

        A code is the mixed-radix number of its values, the first one varying fastest. () where
        codes have no such parts.
        """
        return ()

    @property
    def needs_init(self) -> bool:
        """Whether a learned codebook still has to be initialised from a batch's latents."""
        return False

    def prepare(self, latents: Tensor) -> None:
        """Called in training before quantizing latents (B, D, h, w): (re)initialise codes."""

    def learn(self, latents: Tensor, codes: Tensor) -> None:
        """Called in training after quantizing: updates that no gradient makes."""

    def metrics(self) -> dict[str, Tensor]:
        """The running statistics as scalars to log.

        codebook_usage: share of the codes in use; perplexity: exp of the codes' entropy;
        dead_codes: number of codes not assigned for `restart_after` forwards.
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
        # bincount would make the host wait for a GPU: it checks the codes and finds the highest.
        counts = torch.zeros_like(self.idle_steps)
        counts.scatter_add_(0, codes.flatten(), counts.new_ones(()).expand(codes.numel()))
        share = ranks_here().mean(counts.float() / codes.numel())
        self.share.lerp_(share, 1 - self.decay)
        self.idle_steps.copy_(torch.where(share > 0, 0, self.idle_steps + 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name, value in self._default_buffers().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _default_buffers(self) -> Mapping[str, Tensor]:
        """Values of buffers that a state dict without training state lacks."""
        return {
            "share": torch.zeros_like(self.share),
            "idle_steps": torch.zeros_like(self.idle_steps),
        }


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` with the gradient of `latents` (Bengio et al. 2013)."""
    # latents + (quantized - latents) differs from quantized in the last bits; without a gradient
    # the result must equal what decode looks up.
    return latents + (quantized - latents).detach() if latents.requires_grad else quantized


def as_vectors(latents: Tensor) -> Tensor:
    """Latents (B, D, h, w) as one vector for each position: (B*h*w, D)."""
    return latents.movedim(1, -1).flatten(0, 2)


def at_least_float32(tensor: Tensor) -> Tensor:
    """In float32 where the dtype is shorter: bfloat16 would make near codes equally near."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_slices(vectors: Tensor, codebook_size: int) -> tuple[Tensor, ...]:
    """Vectors (N, D) split so that (vectors, codes) arrays of a part have at most MAX_VALUES."""
    parts: tuple[Tensor, ...] = vectors.split(max(1, MAX_VALUES // codebook_size))
    return parts


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the nearest row of codebook (K, D) to each of vectors (N, D), Euclidean.

    The (N, K) distances are computed in parts, at least in float32.
    """
    vectors, codebook = at_least_float32(vectors), at_least_float32(codebook)
    square = codebook.square().sum(dim=1)  # |v|^2 is the same for every code, so it is left out
    parts = in_slices(vectors, len(codebook))
    return torch.cat(
        [torch.addmm(square, part, codebook.T, alpha=-2.0).argmin(dim=1) for part in parts]
    )
