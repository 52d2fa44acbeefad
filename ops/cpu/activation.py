"""GroupNorm and SiLU fused for training on a CPU, so that one tensor less is saved of each pair.

Unfused, the pair saves the norm's input, its output and, for the convolution that follows, the
SiLU's output. Fused, the backward pass recomputes the norm's output in one or two passes over
memory, and the SiLU works in place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

native = torch.ops.aten


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """silu(norm(x)) for x (B, C, H, W); bit-identical with and without gradients.

    Fused for a GroupNorm that trains on a CPU in a single dtype; else the two operations of torch.
    """
    if isinstance(norm, nn.GroupNorm) and _is_supported(x, norm.weight):
        fused: Tensor = _GroupNormSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
        return fused
    normed = norm(x)
    # In place where no gradient needs the input: saves a fifth of encoding time on a CPU.
    return F.silu(normed, inplace=not normed.requires_grad)


def _is_supported(x: Tensor, weight: Tensor) -> bool:
    # On GPUs torch.compile fuses as much.
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return needs_grad and x.device.type == "cpu" and x.dtype == weight.dtype


class _GroupNormSiLU(torch.autograd.Function):
    """silu(group_norm(x)), saving x and the groups' statistics."""

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
        gradients = native.native_group_norm_backward(
            gradient, x, mean, scale, weight, *ctx.sizes, list(ctx.needs_input_grad[:3])
        )
        return *gradients, None, None


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
