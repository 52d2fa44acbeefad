"""draw_codes: the one place where what a model has read becomes codes."""

from __future__ import annotations

import torch
from torch import Tensor

from prior.models import LevelHead, PriorModel, join_levels
from prior.sampling.distributions import (
    SampledCodes,
    SamplingSettings,
    draw,
    draw_and_rescale,
    guided,
)


def draw_codes(
    model: PriorModel,
    features: Tensor,
    uniforms: Tensor,
    settings: SamplingSettings,
    scale: Tensor | None = None,
) -> SampledCodes:
    """Codes (B, G) after `features` (P, G, width), the inputs of the head, by uniforms (B, G).

    With a guidance scale (G, 1), P is 2B and the last B sequences are unconditional. The logits are
    in float32 at least, whatever the precision of the features: inference_copy keeps the head so.
    """
    features = features.to(logits_dtype(model))
    if isinstance(model.head, LevelHead):
        return _draw_levels(model.head, features, uniforms, settings, scale)
    logits = _guided_logits(model.head(features), scale)
    codes, logs = draw(logits.flatten(0, 1), uniforms.flatten(), settings)
    return SampledCodes(codes.view(uniforms.shape), logs.view(uniforms.shape))


def _draw_levels(
    head: LevelHead,
    features: Tensor,
    uniforms: Tensor,
    settings: SamplingSettings,
    scale: Tensor | None,
) -> SampledCodes:
    """As draw_codes, one level after another, each by what the one before left of its number.

    Without settings, this draws from the exact distribution of the codes.
    """
    numbers, copies = uniforms.flatten(), len(features) // len(uniforms)
    values: list[Tensor] = []  # of the levels so far, (B, G) each
    logs = torch.zeros_like(uniforms, dtype=torch.float32)
    for inputs in head.hidden_inputs(features):
        logits = head.logits(inputs, [value.repeat(copies, 1) for value in values])
        logits = _guided_logits(logits, scale)
        drawn, numbers = draw_and_rescale(logits.flatten(0, 1), numbers, settings)
        values.append(drawn.codes.view(uniforms.shape))
        logs = logs + drawn.log_probabilities.view(uniforms.shape)
    return SampledCodes(join_levels(values, head.levels), logs)


def _guided_logits(logits: Tensor, scale: Tensor | None) -> Tensor:
    """Logits (P, G, n) after guidance by a scale (G, 1), (B, G, n); the same without one."""
    if scale is None:
        return logits
    conditional, unconditional = logits.chunk(2)
    return guided(conditional, unconditional, scale)


def logits_dtype(model: PriorModel) -> torch.dtype:
    """The type of logits and guidance scales: that of the weights, but float32 at least."""
    return torch.promote_types(model.token_embedding.weight.dtype, torch.float32)
