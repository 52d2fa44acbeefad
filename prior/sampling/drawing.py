"""draw_codes: the one place where what a model has read becomes codes."""

from __future__ import annotations

import torch
from torch import Tensor

from prior.models import PriorModel
from prior.sampling.distributions import SampledCodes, SamplingSettings, draw, guided


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
    logits = model.head(features.to(logits_dtype(model)))
    if scale is not None:
        conditional, unconditional = logits.chunk(2)
        logits = guided(conditional, unconditional, scale)
    codes, logs = draw(logits.flatten(0, 1), uniforms.flatten(), settings)
    return SampledCodes(codes.view(uniforms.shape), logs.view(uniforms.shape))


def logits_dtype(model: PriorModel) -> torch.dtype:
    """The type of logits and guidance scales: that of the weights, but float32 at least."""
    return torch.promote_types(model.token_embedding.weight.dtype, torch.float32)
