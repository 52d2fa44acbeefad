"""Norms and MLPs of a prior's blocks, by name: the paper's and the modern ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ops.config import Registry
from ops.cpu import Linear

EPSILON = 1e-5
INITIAL_STD = 0.02
HIDDEN_MULTIPLE = 64  # what tensor cores like their sizes to be a multiple of

NORMS: Registry[Callable[[int, bool], nn.Module]] = Registry("norm")
MLPS: Registry[Callable[[int, bool], nn.Sequential]] = Registry("mlp")
"""Both make a module of tokens (..., width) -> (..., width) from (width, whether biases are
wanted). The last layer of an MLP is the linear one that is added to the residual stream."""


@NORMS.register("layer")
def layer_norm(width: int, bias: bool) -> nn.Module:
    """The paper's."""
    return nn.LayerNorm(width, eps=EPSILON, bias=bias)


@NORMS.register("rms")
def rms_norm(width: int, bias: bool) -> nn.Module:
    """Scale without shift (Zhang & Sennrich 2019), so there is never a bias."""
    return RMSNorm(width, eps=EPSILON)


class RMSNorm(nn.RMSNorm):
    """Torch's, in the precision of its gain: it has no fast path for mixed ones, and warns."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


@MLPS.register("gelu")
def gelu_mlp(width: int, bias: bool) -> nn.Sequential:
    """The paper's: four times the width, exact (erf) GELU."""
    hidden = 4 * width
    return nn.Sequential(
        Linear(width, hidden, bias=bias), nn.GELU(), Linear(hidden, width, bias=bias)
    )


@MLPS.register("swiglu")
def swiglu_mlp(width: int, bias: bool) -> nn.Sequential:
    """SwiGLU (Shazeer 2020): its three matrices take about the room of the paper's two."""
    hidden = swiglu_hidden(width)
    return nn.Sequential(
        Linear(width, 2 * hidden, bias=bias), SwiGLU(), Linear(hidden, width, bias=bias)
    )


def swiglu_hidden(width: int) -> int:
    """2/3 of four times the width, to the nearest multiple of 64."""
    return max(1, round(8 * width / 3 / HIDDEN_MULTIPLE)) * HIDDEN_MULTIPLE


class SwiGLU(nn.Module):
    """(..., 2n) -> (..., n): the second half, gated by the first."""

    def forward(self, x: Tensor) -> Tensor:
        gates, values = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gates) * values


def initialise_layer(module: nn.Module) -> None:
    """First weights of a linear layer or an embedding: normal, biases 0 (published GPTs')."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


@torch.no_grad()
def scale_residual(weights: Sequence[Tensor]) -> None:
    """Divide what all blocks add to the residual stream by the root of its number of terms."""
    for weight in weights:
        weight /= len(weights) ** 0.5
