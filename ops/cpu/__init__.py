"""Faster CPU kernels that rely on private torch operations, each with a plain torch fallback.

Each module has one function that says when its kernel is used and computes by public torch
operations otherwise: convolve_3x3 (NNPACK), linear_product (oneDNN, training), pack_linear
(oneDNN with prepacked weights, inference) and norm_silu (fused GroupNorm and SiLU). Models use
the modules Convolution and Linear, which call them. Read convolution.py first: it is the only
kernel that changes results, by their last bits.
"""

from ops.cpu.activation import norm_silu
from ops.cpu.convolution import Convolution, nnpack_works, use_convolution
from ops.cpu.linear import Linear
from ops.cpu.packed_linear import PackedLinear, can_pack, pack_linear

__all__ = [
    "Convolution",
    "Linear",
    "PackedLinear",
    "can_pack",
    "nnpack_works",
    "norm_silu",
    "pack_linear",
    "use_convolution",
]
