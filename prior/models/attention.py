"""Causal self-attention and the pre-norm transformer block, with the config that both read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError, Range, check_fields
from ops.cpu import Linear
from prior.models.code_levels import Levels, Starts, check_code_levels
from prior.models.layers import MLPS, NORMS
from prior.models.rotary import Rotation, rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention output of queries, keys and values, each (B, heads, T, head_dim)."""


Vocabulary = Annotated[int, Range(least=1, most=2**26)]
Length = Annotated[int, Range(least=0, most=2**24)]
Layers = Annotated[int, Range(least=1, most=1024)]
Width = Annotated[int, Range(least=1, most=2**16)]
Window = Annotated[int, Range(least=1, most=4096)]
Radius = Annotated[int, Range(least=1, most=4096)]
Dropout = Annotated[float, Range(least=0, below=1)]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Fields that all transformers over codes share: vocabulary, sizes and parts of a block.

    Raises ConfigError for a size out of range or a part of an unknown name.
    """

    codebook_size: Vocabulary
    condition_vocab_size: Vocabulary
    condition_length: Length
    """number of condition tokens before the codes"""
    num_layers: Layers = 4
    num_heads: Layers = 4
    width: Width = 256
    dropout: Dropout = 0.0
    norm: str = "layer"
    """a name in prior.models.layers.NORMS"""
    mlp: str = "gelu"
    """a name in prior.models.layers.MLPS"""
    qk_norm: bool = False
    """normalize queries and keys, which bounds the attention logits (Henry et al. 2020; for large
    image models Dehghani et al. 2023)"""
    bias: bool = True
    """whether linear layers and layer norms have biases"""
    scaled_residual: bool = False
    """divide the initial weights of the layers that write to the residual stream by
    sqrt(2 * num_layers), so that its variance does not grow with depth (Radford et al. 2019)"""
    code_levels: Levels = ()
    """levels of a code, the first varying fastest, to embed it and predict it by: see
    prior.models.code_levels; none: each code by itself"""
    condition_codes: Starts = ()
    """with code_levels: first tokens, among the conditions' from 0, of those that are such codes"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.condition_length < self.min_condition_length:
            raise ConfigError(
                f"condition_length must be at least {self.min_condition_length}, found "
                f"{self.condition_length}."
            )
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not a multiple of {self.num_heads} heads.")
        self._check_choice("norm", NORMS)
        self._check_choice("mlp", MLPS)
        check_code_levels(self)

    def _check_choice(self, name: str, known: Collection[str]) -> None:
        if getattr(self, name) not in known:
            raise ConfigError(
                f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}."
            )

    @property
    def min_condition_length(self) -> int:
        """Least condition_length: the first code is predicted from at least one token."""
        return 1

    @property
    def head_dim(self) -> int:
        """Channels of one head's queries, keys and values."""
        return self.width // self.num_heads


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(config.width, 3 * config.width, bias=config.bias)
        self.proj = Linear(config.width, config.width, bias=config.bias)
        self.query_norm, self.key_norm = (
            NORMS[config.norm](config.head_dim, config.bias) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def forward(
        self, latents: Tensor, rotation: Rotation | None, attend: Attend | None = None
    ) -> Tensor:
        """(B, T, width) -> (B, T, width), or as many tokens as `attend` returns.

        `attend` replaces causal attention over the T tokens, for instance by one over a KV cache.
        """
        (batch, length, _), config = latents.shape, self.config
        qkv = self.qkv(latents).view(batch, length, 3, config.num_heads, config.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_dim)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        # Norms and rotations return float32 under autocast; attention needs one dtype.
        queries, keys = queries.to(values.dtype), keys.to(values.dtype)
        attended = (attend or self._attend)(queries, keys, values)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        dropout = self.config.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, is_causal=True
        )


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP, each added to its input."""

    def __init__(self, config: BlockConfig, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config.width, config.bias)
        self.attention = attention(config)
        self.mlp_norm = NORMS[config.norm](config.width, config.bias)
        self.mlp = MLPS[config.mlp](config.width, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        latents: Tensor,
        rotation: Rotation | None,
        attend: Attend | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """(B, T, width) -> (B, T', width); see Attention.

        `kept` (T',) indexes the tokens for which `attend` returns output, when not all of them.
        """
        attended = self.attention(self.attention_norm(latents), rotation, attend)
        if kept is not None:
            latents = latents[:, kept]
        latents = latents + self.dropout(attended)
        out: Tensor = latents + self.dropout(self.mlp(self.mlp_norm(latents)))
        return out

    def residual_weights(self) -> list[Tensor]:
        """Weights of the two layers whose outputs are added to the residual stream."""
        return [self.attention.proj.weight, self.mlp[-1].get_parameter("weight")]
