"""Linear layers whose weights lie as the processor reads them fastest.

For float32 on x86, oneDNN with its weights reordered once is several times as fast as the BLAS
that torch.nn.Linear calls, most of all where few tokens come at a time: a 12-layer GPT of width 768
reads 1 / 8 / 392 tokens in 5 / 8 / 150 ms, by nn.Linear in 18 / 29 / 358 (2 threads, AMD EPYC with
AVX-512). The weights are there twice then.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from prior.models import PriorModel, make_model

# Rows that the order of the weights is chosen for: it suits few rows and, measured, many too.
ROWS = 8


class PackedLinear(nn.Module):
    """A linear layer for inference, with a copy of its weights in oneDNN's order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def can_pack(linear: nn.Linear) -> bool:
    """Whether this processor and this build of PyTorch have what it takes."""
    return (
        linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.float32
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def inference_copy(model: PriorModel) -> PriorModel:
    """The same model made to paint: not in training, its linear layers packed where they can be.

    Other weights are shared with `model`; later changes of its weights show in those alone.
    """
    with torch.device("meta"):
        copy = make_model(model.config)
    copy.load_state_dict(model.state_dict(), assign=True)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and can_pack(child):
                setattr(parent, name, PackedLinear(child))
    return copy.requires_grad_(False).eval()
