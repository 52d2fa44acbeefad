"""A linear layer whose products, in training on a CPU, are made by the fastest library at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# torch's matrix products of float32 are MKL's, which on AMD's CPUs uses half of AVX-512; oneDNN,
# whose convolutions torch uses, writes its own code and is twice as fast there. Without AVX-512
# the two are equally fast.
ONEDNN_IS_FASTER = (
    torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


class Linear(nn.Linear):
    """nn.Linear; a step of training on such a CPU takes it as the 1x1 convolution that it is.

    Not so where no gradient is wanted: painting has few rows at a time, and ways of its own
    (prior.sampling.packed_linear).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        if not (ONEDNN_IS_FASTER and _suits(input, self.weight)):
            return super().forward(input)
        return _as_convolution(input, self.weight, self.bias)


def _suits(rows: Tensor, weight: Tensor) -> bool:
    plain = rows.device.type == "cpu" and rows.dtype == weight.dtype == torch.float32
    return plain and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _as_convolution(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight.T + bias, rows (..., n) as the pixels of an image in one line."""
    image = rows.reshape(1, 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)  # channels last: no copy
    # One pixel cannot be dilated, but asked for that torch uses oneDNN on a single thread, too.
    done = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return done.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], weight.shape[0])
