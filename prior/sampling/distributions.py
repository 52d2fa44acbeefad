"""From logits to codes: guidance, temperature, top-k, top-p, min-p and sampling."""

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
    """How a code is sampled from the logits. Raises ConfigError for values out of range.

    Where a prior predicts a code level by level (prior.models.code_levels), all of this applies to
    each level in turn, given the levels before it: top_k keeps k values of each level, temperature
    0 takes the most likely value of each, and guidance moves each level's logits.
    """

    temperature: float = 1.0
    """0 or more; logits are divided by it, and 0 takes the most likely code"""
    top_k: int | None = None
    """keep only the k most likely codes (Fan et al. 2018)"""
    top_p: float | None = None
    """keep the smallest set of most likely codes whose total probability reaches this, in (0, 1]
    (nucleus sampling, Holtzman et al. 2020)"""
    min_p: float | None = None
    """keep the codes whose probability is at least this fraction, in (0, 1], of the highest one
    (Nguyen et al. 2024)"""
    guidance_scale: float = 1.0
    """0 or more; classifier-free guidance (Ho & Salimans 2022, equation 6, where w is this - 1): 1
    is off, and any other value takes a second, unconditional forward for each code"""
    guidance_schedule: str = "constant"
    """constant, or power-cosine: rises from 1 at a window's first code to guidance_scale after its
    last"""
    guidance_power: float = 1.0
    """exponent of power-cosine, above 0: the higher, the later the scale rises"""

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
        """Whether each code takes a conditional and an unconditional forward."""
        return self.guidance_scale != 1

    def guidance_at(self, share: float) -> float:
        """Guidance scale of a code, where `share` in [0, 1) of its window's codes precede it.

        It follows the window, not the canvas: guidance rises with how much of the image the prior
        sees, and a large canvas is guided alike from top to bottom. Power-cosine is the schedule of
        RAR (Yu et al. 2024), after MDT (Gao et al. 2023).
        """
        if self.guidance_schedule == "constant":
            return self.guidance_scale
        rise = (1 - math.cos(math.pi * share**self.guidance_power)) / 2
        return 1 + (self.guidance_scale - 1) * rise


class SampledCodes(NamedTuple):
    """Codes and the log-probabilities with which they were sampled."""

    codes: Tensor  # int64
    log_probabilities: Tensor
    """float32, in nats, of the same shape: after guidance, temperature and the restrictions to
    likely codes; 0 for forced codes and at temperature 0"""


def guided(logits: Tensor, null_logits: Tensor, scale: float | Tensor) -> Tensor:
    """Guided logits: null_logits + scale * (logits - null_logits)."""
    return null_logits + scale * (logits - null_logits)


def draw(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> SampledCodes:
    """One code (B,) for each row of logits (B, K), by uniforms (B,) in [0, 1).

    Inverse transform sampling in float64: a code depends on its own row and number only.
    """
    return draw_and_rescale(logits, uniforms, settings)[0]


def draw_and_rescale(
    logits: Tensor, uniforms: Tensor, settings: SamplingSettings
) -> tuple[SampledCodes, Tensor]:
    """As draw, and numbers (B,) in [0, 1] to draw what depends on these codes.

    A code is drawn by all numbers of an interval as long as the code is probable. The number's
    place in it, from 0 to 1, is uniform whatever the code is. Each draw by the rescaled number
    costs its code's information of the 53 bits.
    """
    if settings.temperature == 0:
        most_likely = logits.argmax(dim=-1)
        return SampledCodes(
            most_likely, torch.zeros_like(most_likely, dtype=torch.float32)
        ), uniforms
    logits = logits.double() / settings.temperature
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    probabilities = logits.softmax(dim=-1)
    if settings.top_p is not None:
        probabilities = keep_top_p(probabilities, settings.top_p)
    if settings.min_p is not None:
        probabilities = keep_min_p(probabilities, settings.min_p)
    cumulative = cumulative_sum(probabilities)
    total = cumulative[:, -1:]
    # Rounding may raise u * total to total, past the last code of nonzero probability.
    targets = (uniforms[:, None].double() * total).minimum(total.nextafter(torch.zeros_like(total)))
    codes = torch.searchsorted(cumulative, targets, right=True)
    sampled = probabilities.gather(-1, codes)
    # Where the code's interval begins.
    below = cumulative.gather(-1, (codes - 1).clamp(min=0)).masked_fill(codes == 0, 0)
    rescaled = ((targets - below) / sampled).clamp(0, 1)[:, 0]
    return SampledCodes(codes[:, 0], (sampled / total)[:, 0].log().float()), rescaled


def cumulative_sum(values: Tensor) -> Tensor:
    """Sums of the first entries of each row (B, K), the same bits each time."""
    if values.is_cuda and len(values) == 1:
        # torch scans a single row by many blocks, which add up in the order in which they end.
        return values.expand(2, -1).cumsum(dim=-1)[:1]
    return values.cumsum(dim=-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, K) with all but the k highest set to -inf; ties with the k-th are kept."""
    if k >= logits.shape[-1]:
        return logits
    lowest = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < lowest, -torch.inf)


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Probabilities (B, K), 0 outside the smallest set that reaches p; not normalized."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = F.pad(
        cumulative_sum(ordered)[:, :-1], (1, 0)
    )  # 0 before the most likely code: it is kept
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= p, 0))


def keep_min_p(probabilities: Tensor, p: float) -> Tensor:
    """Probabilities (B, K), 0 where below p times the row's maximum; not normalized."""
    return probabilities.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), 0)
