"""From logits to a code: temperature, top-k, top-p, guidance, and the draw itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How codes are drawn.

    Temperature 0 takes the likeliest code. `top_k` keeps the k likeliest codes, `top_p` the
    likeliest that together have probability p. A guidance_scale above 1 leads away from what the
    prior would draw when told nothing (Ho & Salimans 2022); it doubles the work.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature must be 0 or more, found {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, found {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], found {self.top_p}.")
        if self.guidance_scale < 0:
            raise ConfigError(f"guidance_scale must be 0 or more, found {self.guidance_scale}.")


def guided(logits: Tensor, null_logits: Tensor, scale: float) -> Tensor:
    """Logits moved `scale` times as far from null_logits as they are."""
    return null_logits + scale * (logits - null_logits)


def draw(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> Tensor:
    """Codes (B,) for logits (B, K) and one number in [0, 1) for each row, uniforms (B,).

    Inverts the cumulative distribution in float64, so that the same number gives the same code
    wherever and in whatever order it is drawn.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.double() / settings.temperature
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    probabilities = logits.softmax(dim=-1)
    if settings.top_p is not None:
        probabilities = keep_top_p(probabilities, settings.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may lift u * total to total, past the last code that has any probability.
    targets = (uniforms[:, None].double() * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, K), all but the k highest at -inf; codes tied with the k-th stay too."""
    if k >= logits.shape[-1]:
        return logits
    lowest = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < lowest, -torch.inf)


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Probabilities (B, K), 0 outside the fewest codes that reach p together; not normalised."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = F.pad(ordered.cumsum(dim=-1)[:, :-1], (1, 0))  # 0 before the likeliest: it stays
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= p, 0))
