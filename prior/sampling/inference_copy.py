"""A copy of a prior for sampling, with linear layers packed for the CPU where possible."""

from __future__ import annotations

import torch
from torch import nn

from ops.cpu import pack_linear
from prior.models import PriorModel, make_model


def inference_copy(model: PriorModel) -> PriorModel:
    """The same model in eval mode, without gradients, its linear layers packed where possible.

    All other weights are shared with `model`. Packed weights are copies: later changes of the
    model's do not reach them.
    """
    with torch.device("meta"):
        copy = make_model(model.config)
    copy.load_state_dict(model.state_dict(), assign=True)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, pack_linear(child))
    return copy.requires_grad_(False).eval()
