"""From logits to a code: temperature, top-k, top-p, min-p, guidance, and the draw itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.config import ConfigError

GUIDANCE_SCHEDULES = ("constant", "power-cosine")


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How codes are drawn. A guidance_scale other than 1 doubles the work."""

    temperature: float = 1.0
    """below 1 likelier codes, above 1 stranger ones; 0 always takes the likeliest"""
    top_k: int | None = None
    """keep the k likeliest codes only"""
    top_p: float | None = None
    """keep the fewest, likeliest codes that together have this probability"""
    min_p: float | None = None
    """keep the codes that are at least this many times as probable as the likeliest (Nguyen et
    al. 2024)"""
    guidance_scale: float = 1.0
    """above 1 leads away from what the prior would draw when told nothing (Ho & Salimans 2022)"""
    guidance_schedule: str = "constant"
    """constant, or power-cosine: from 1 at a window's first code to guidance_scale behind its
    last"""
    guidance_power: float = 1.0
    """of power-cosine: the higher, the later the scale rises"""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature must be 0 or more, found {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, found {self.top_k}.")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ConfigError(f"{name} must be in (0, 1], found {share}.")
        if self.guidance_scale < 0:
            raise ConfigError(f"guidance_scale must be 0 or more, found {self.guidance_scale}.")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise ConfigError(
                f"guidance_schedule must be one of {', '.join(GUIDANCE_SCHEDULES)}, found "
                f"{self.guidance_schedule!r}."
            )
        if self.guidance_power <= 0:
            raise ConfigError(f"guidance_power must be above 0, found {self.guidance_power}.")

    @property
    def guides(self) -> bool:
        """Whether each code is foretold twice, told and not told."""
        return self.guidance_scale != 1

    def guidance_at(self, share: float) -> float:
        """The scale for a code before which `share`, in [0, 1), of its window's codes lie.

        The window's, not the canvas's: guidance rises with how much of the picture the prior sees,
        and a large canvas is led alike from top to bottom. On a grid no larger than the window the
        two are one. Power-cosine as in RAR (Yu et al. 2024), after MDT (Gao et al. 2023).
        """
        if self.guidance_schedule == "constant":
            return self.guidance_scale
        rise = (1 - math.cos(math.pi * share**self.guidance_power)) / 2
        return 1 + (self.guidance_scale - 1) * rise


class Draw(NamedTuple):
    """What was drawn."""

    codes: Tensor  # int64
    log_probabilities: Tensor
    """float32, of the same shape: of each code where it was drawn, after temperature, guidance and
    all that keeps codes out; 0 for what was given or could not have been another"""


def guided(logits: Tensor, null_logits: Tensor, scale: float | Tensor) -> Tensor:
    """Logits moved `scale` times as far from null_logits as they are."""
    return null_logits + scale * (logits - null_logits)


def draw(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> Draw:
    """One code (B,) a row of logits (B, K), by one number in [0, 1) each, uniforms (B,).

    Inverts the cumulative distribution in float64, so that the same number gives the same code
    wherever and in whatever order it is drawn.
    """
    if settings.temperature == 0:
        return Draw(logits.argmax(dim=-1), logits.new_zeros(len(logits), dtype=torch.float32))
    logits = logits.double() / settings.temperature
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    probabilities = logits.softmax(dim=-1)
    if settings.top_p is not None:
        probabilities = keep_top_p(probabilities, settings.top_p)
    if settings.min_p is not None:
        probabilities = keep_min_p(probabilities, settings.min_p)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may lift u * total to total, past the last code that has any probability.
    targets = (uniforms[:, None].double() * total).minimum(total.nextafter(torch.zeros_like(total)))
    codes = torch.searchsorted(cumulative, targets, right=True)
    shares = probabilities.gather(-1, codes) / total
    return Draw(codes[:, 0], shares[:, 0].log().float())


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


def keep_min_p(probabilities: Tensor, p: float) -> Tensor:
    """Probabilities (B, K), 0 where below p times the row's highest; not normalised."""
    return probabilities.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), 0)
