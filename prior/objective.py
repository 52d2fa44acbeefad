"""The training loss of a prior: negative log-likelihood of the codes and optional extra terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ops.config import Range, Share, Weight, check_fields
from prior.models import PriorModel, code_terms, cross_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """Additions to the likelihood; none by default, as in the published runs.

    Where a prior predicts a code level by level (prior.models.code_levels), each level has its own
    label smoothing and z-loss, over its values, and the terms are their sums.
    Raises ConfigError for values out of range.
    """

    pkeep: Share = 1.0
    """probability, 0 to 1, that an input code is kept and not replaced by a random one; the targets
    are not changed (published code of Esser et al. 2021). It trains for recovery from mistakes"""
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    """part, in [0, 1), of each target that is spread evenly over all codes (Szegedy et al. 2016)"""
    z_loss_weight: Weight = 0.0
    """weight, 0 or more, of the mean squared log of the softmax's denominator, which keeps logits
    from drifting (de Brebisson & Vincent 2016; 1e-4 in PaLM, Chowdhery et al. 2022)"""

    def __post_init__(self) -> None:
        check_fields(self)


class Objective(NamedTuple):
    """The result for one batch."""

    nll: Tensor  # (B, h, w), nats, without the extra terms and without gradient
    loss: Tensor  # scalar, to minimize


def training_objective(
    model: PriorModel,
    condition_tokens: Tensor,
    codes: Tensor,
    read: Tensor,
    settings: LossSettings,
    valid_mask: Tensor | None = None,
) -> Objective:
    """The objective of target codes (B, h, w) after condition tokens (B, C).

    The model reads the codes `read` (B, h, w): the targets themselves, or what `perturbed` returned
    for them, in which case the nll is that of a model with noisy inputs. Cells outside `valid_mask`
    (B, h, w) add nothing to the loss, which is a mean over all cells, so that the losses of a
    batch's parts add up.
    """
    terms = code_terms(model.head, model.code_features(condition_tokens, read), codes)
    parts = [cross_entropy(*term) for term in terms]
    nll = torch.stack(parts).sum(0)
    losses = nll + sum(
        extra_terms(*term, part, settings) for term, part in zip(terms, parts, strict=True)
    )
    return Objective(nll.detach(), (losses if valid_mask is None else losses * valid_mask).mean())


def perturbed(
    codes: Tensor, pkeep: float, codebook_size: int, generator: torch.Generator
) -> Tensor:
    """Codes, each kept with probability pkeep and else replaced by a uniformly random code."""
    if pkeep == 1:
        return codes
    kept = torch.rand(codes.shape, generator=generator) < pkeep
    others = torch.randint(codebook_size, codes.shape, generator=generator)
    return torch.where(kept.to(codes.device), codes, others.to(codes.device))


def extra_terms(
    logits: Tensor, codes: Tensor, nll: Tensor, settings: LossSettings
) -> Tensor | float:
    """Terms (B, h, w) to add to `nll` (B, h, w), the cross-entropy of `codes` under `logits`."""
    added: Tensor | float = 0.0
    if not settings.label_smoothing and not settings.z_loss_weight:
        return added
    # The log of the softmax's denominator, without another pass over the logits.
    log_totals = nll + logits.gather(-1, codes[..., None])[..., 0].float()
    if settings.label_smoothing:
        uniform_nll = log_totals - logits.float().mean(dim=-1)  # mean nll over all codes
        added = added + settings.label_smoothing * (uniform_nll - nll)
    if settings.z_loss_weight:
        added = added + settings.z_loss_weight * log_totals.square()
    return added
