"""A prior's model prepared for sampling: evaluation mode, no gradients, packed linear layers."""

from __future__ import annotations

import torch
from torch import nn

from ops.cpu import pack_linear
from prior.models import PriorModel, make_model


def inference_copy(model: PriorModel) -> PriorModel:
    """The same model for sampling: in evaluation mode, linear layers packed where they can be.

    Other weights are shared with `model`; later changes of its weights show in those alone.
    """
    with torch.device("meta"):
        copy = make_model(model.config)
    copy.load_state_dict(model.state_dict(), assign=True)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, pack_linear(child))
    return copy.requires_grad_(False).eval()
