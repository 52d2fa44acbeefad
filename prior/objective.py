"""What training a prior lowers: its surprise at the codes, and what may be asked on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ops.config import ConfigError
from prior.models import PriorModel, cross_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """What is asked on top of the likelihood; by default nothing, as in the published runs."""

    pkeep: float = 1.0
    """probability that a code is read as it is, not as a random one; what is foretold stays true
    (Esser et al. 2021, published code): teaches to go on after mistakes"""
    label_smoothing: float = 0.0
    """share of each target that is spread over all codes (Szegedy et al. 2016)"""
    z_loss_weight: float = 0.0
    """weight of the mean squared log of the softmax's denominator, which keeps logits from
    drifting (de Brebisson & Vincent 2016; 1e-4 in PaLM)"""

    def __post_init__(self) -> None:
        if not 0 <= self.pkeep <= 1:
            raise ConfigError(f"pkeep must be from 0 to 1, found {self.pkeep}.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), found {self.label_smoothing}.")
        if self.z_loss_weight < 0:
            raise ConfigError(f"z_loss_weight must be 0 or more, found {self.z_loss_weight}.")


class Objective(NamedTuple):
    """What one batch gives."""

    nll: Tensor  # (B, h, w), the surprise at each code, without any term on top; no gradient
    loss: Tensor  # scalar: what to lower


def training_objective(
    model: PriorModel,
    condition_tokens: Tensor,
    codes: Tensor,
    read: Tensor,
    settings: LossSettings,
    valid_mask: Tensor | None = None,
) -> Objective:
    """The objective of codes (B, h, w) after tokens (B, C), of which the model reads `read`.

    Those are `codes` themselves, or what `perturbed` made of them; then the nats are those of a
    model that reads noise. Cells that are not `counted` (B, h, w) add nothing to the loss, which
    is still over all cells, so that parts of a batch add up.
    """
    logits = model.code_logits(condition_tokens, read)
    nll = cross_entropy(logits, codes)
    losses = nll + extra_terms(logits, codes, nll, settings)
    return Objective(nll.detach(), (losses if valid_mask is None else losses * valid_mask).mean())


def perturbed(
    codes: Tensor, pkeep: float, codebook_size: int, generator: torch.Generator
) -> Tensor:
    """Codes of which each stays with probability pkeep, or else becomes any code, itself too."""
    if pkeep == 1:
        return codes
    kept = torch.rand(codes.shape, generator=generator) < pkeep
    others = torch.randint(codebook_size, codes.shape, generator=generator)
    return torch.where(kept.to(codes.device), codes, others.to(codes.device))


def extra_terms(
    logits: Tensor, codes: Tensor, nll: Tensor, settings: LossSettings
) -> Tensor | float:
    """What the settings add to `nats` (B, h, w), the surprise at `codes` under `logits`."""
    added: Tensor | float = 0.0
    if not settings.label_smoothing and not settings.z_loss_weight:
        return added
    # The log of the softmax's denominator, without another pass over every logit.
    log_totals = nll + logits.gather(-1, codes[..., None])[..., 0].float()
    if settings.label_smoothing:
        evenly = log_totals - logits.float().mean(dim=-1)  # the surprise at a code at random
        added = added + settings.label_smoothing * (evenly - nll)
    if settings.z_loss_weight:
        added = added + settings.z_loss_weight * log_totals.square()
    return added
