"""Norms and MLPs of a prior's transformer blocks, in registries, and their initialization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops.config import Registry
from ops.cpu import Linear
from prior.models.code_levels import LevelHead

EPSILON = 1e-5
INITIAL_STD = 0.02
HIDDEN_MULTIPLE = 64  # tensor cores are fastest at such multiples

NORMS: Registry[Callable[[int, bool], nn.Module]] = Registry("norm")
MLPS: Registry[Callable[[int, bool], nn.Sequential]] = Registry("mlp")
"""Entries of both take (width, bias) and return a module (..., width) -> (..., width). The last
layer of an MLP is the linear layer whose output is added to the residual stream."""


@NORMS.register("layer")
def layer_norm(width: int, bias: bool) -> nn.Module:
    """Layer norm, as in Esser et al. (2021)."""
    return LayerNorm(width, eps=EPSILON, bias=bias)


@NORMS.register("rms")
def rms_norm(width: int, bias: bool) -> nn.Module:
    """RMSNorm (Zhang & Sennrich 2019); it has no bias, whatever `bias` says."""
    return RMSNorm(width, eps=EPSILON)


class LayerNorm(nn.LayerNorm):
    """torch's, computed in its weight's dtype: on CPUs torch refuses a float32 input for others."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class RMSNorm(nn.RMSNorm):
    """torch's, computed in its weight's dtype: torch warns about mixed dtypes, which are slow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


@MLPS.register("gelu")
def gelu_mlp(width: int, bias: bool) -> nn.Sequential:
    """MLP of Esser et al. (2021): 4 * width hidden channels, exact (erf) GELU."""
    hidden = 4 * width
    return nn.Sequential(
        Linear(width, hidden, bias=bias), nn.GELU(), Linear(hidden, width, bias=bias)
    )


@MLPS.register("swiglu")
def swiglu_mlp(width: int, bias: bool) -> nn.Sequential:
    """SwiGLU (Shazeer 2020): three matrices with about as many weights as gelu_mlp's two."""
    hidden = swiglu_hidden(width)
    return nn.Sequential(
        Linear(width, 2 * hidden, bias=bias), SwiGLU(), Linear(hidden, width, bias=bias)
    )


def swiglu_hidden(width: int) -> int:
    """Two thirds of 4 * width, rounded to a multiple of 64."""
    return max(1, round(8 * width / 3 / HIDDEN_MULTIPLE)) * HIDDEN_MULTIPLE


class SwiGLU(nn.Module):
    """(..., 2n) -> (..., n): SiLU of the first half times the second half."""

    def forward(self, x: Tensor) -> Tensor:
        gates, values = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gates) * values


def initialise_layer(module: nn.Module) -> None:
    """Initialize a linear layer or embedding: normal, std 0.02, zero bias (Radford et al. 2018)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, LevelHead):  # after the layers in it
        module.initialise()


@torch.no_grad()
def scale_residual(weights: Sequence[Tensor]) -> None:
    """Divide the weights that write to the residual stream by the square root of their number."""
    for weight in weights:
        weight /= len(weights) ** 0.5


def run_block(block: nn.Module, recompute: bool, *inputs: Any) -> Tensor:
    """block(*inputs); with `recompute`, training stores the inputs only (Chen et al. 2016).

    Its activations are then computed again in the backward pass, which saves memory for about a
    third more time.
    """
    if recompute and block.training and torch.is_grad_enabled():
        output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    else:
        output = block(*inputs)
    return output
