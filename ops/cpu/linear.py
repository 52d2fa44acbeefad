"""A linear layer that trains with oneDNN's matrix products where those beat MKL's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# torch's float32 matrix products are MKL's, which uses half of AVX-512 on AMD's CPUs; oneDNN, which
# computes torch's convolutions, is twice as fast there. Without AVX-512 the two are equally fast.
ONEDNN_IS_FASTER = (
    torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


class Linear(nn.Linear):
    """nn.Linear that computes by linear_product."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        return linear_product(input, self.weight, self.bias)


def linear_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight.T + bias for rows (..., in_features) and weight (out_features, in_features).

    As a 1x1 convolution by oneDNN on a CPU with AVX-512, in float32, with gradients, without
    autocast and outside of torch.compile, whose kernels fail on its strides; else F.linear.
    Inference has few rows at a time: see ops/cpu/packed_linear.py.
    """
    if ONEDNN_IS_FASTER and _is_supported(rows, weight):
        return _as_convolution(rows, weight, bias)
    return F.linear(rows, weight, bias)


def _is_supported(rows: Tensor, weight: Tensor) -> bool:
    plain = rows.device.type == "cpu" and rows.dtype == weight.dtype == torch.float32
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return plain and torch.is_grad_enabled()


def _as_convolution(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight.T + bias, with rows (..., n) as the pixels of an image one row high."""
    image = rows.reshape(1, 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)  # channels last: no copy
    # Dilation does nothing to a 1x1 kernel, but with it torch uses oneDNN on a single thread, too.
    output = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return output.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], weight.shape[0])
