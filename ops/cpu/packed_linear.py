"""Linear layers for inference on a CPU, their weights reordered once for oneDNN.

For float32 on x86, oneDNN with prepacked weights is several times as fast as the BLAS that
torch.nn.Linear calls, most of all with few tokens at a time: a 12-layer GPT of width 768 reads
1 / 8 / 392 tokens in 5 / 8 / 150 ms, with nn.Linear in 18 / 29 / 358 (2 threads, AMD EPYC with
AVX-512). The weights are in memory twice then.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

# Rows that oneDNN chooses the order of the weights for: measured, it suits more rows as well.
ROWS = 8


class PackedLinear(nn.Module):
    """A linear layer for inference, with a copy of its weights in oneDNN's order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return output


def pack_linear(linear: nn.Linear) -> nn.Module:
    """`linear` as a PackedLinear where that can run, see can_pack; else `linear` itself."""
    return PackedLinear(linear) if can_pack(linear) else linear


def can_pack(linear: nn.Linear) -> bool:
    """Whether `linear` is float32 on an x86 CPU and torch has oneDNN's private operations."""
    return (
        linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.float32
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
