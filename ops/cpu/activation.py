"""Norms with the SiLU behind them, as one step: training then keeps one tensor less of each.

Apart, the pair keeps what the norm takes, what it gives and, for the convolution behind, what the
SiLU gives. Together the middle one is made again where the backward pass wants it, in one or two
passes over memory, and the SiLU works in place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

native = torch.ops.aten


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """silu(norm(x)) for x (B, C, H, W); equal to the bit with and without a gradient."""
    if isinstance(norm, nn.GroupNorm) and _worth_it(x, norm.weight):
        fused: Tensor = _GroupNormSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
        return fused
    normed = norm(x)
    # In place where no gradient needs the input: a fifth of an encode's time on a CPU.
    return F.silu(normed, inplace=not normed.requires_grad)


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether this is training in one precision on a CPU; on GPUs the compiler does as much."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return wanted and x.device.type == "cpu" and x.dtype == weight.dtype


class _GroupNormSiLU(torch.autograd.Function):
    """silu(group_norm(x)), keeping x and the groups' statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Any:
        x = x.contiguous(memory_format=_layout(x))
        ctx.sizes, ctx.eps = (*x.shape[:2], x.shape[2:].numel(), groups), eps
        normed, mean, scale = native.native_group_norm(x, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return F.silu(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, bias, mean, scale = ctx.saved_tensors
        normed = native.native_group_norm(x, weight, bias, *ctx.sizes, ctx.eps)[0]
        gradient = native.silu_backward(gradient, normed).contiguous(memory_format=_layout(x))
        wanted = list(ctx.needs_input_grad[:3])
        found = native.native_group_norm_backward(
            gradient, x, mean, scale, weight, *ctx.sizes, wanted
        )
        return *found, None, None


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
