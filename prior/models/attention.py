"""Causal self-attention and the blocks it is part of."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ops.cpu import Linear
from prior.models.gpt_config import BlockConfig
from prior.models.layers import MLPS, NORMS
from prior.models.rotary import Rotation, rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What queries, keys and values (B, heads, T, head_dim) come to, (B, heads, T', head_dim)."""


class Attention(nn.Module):
    """Causal self-attention, many heads."""

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
        """(B, T, width) -> (B, T, width), or as many tokens as `attend` answers."""
        (batch, length, _), config = latents.shape, self.config
        qkv = self.qkv(latents).view(batch, length, 3, config.num_heads, config.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_dim)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        # Norms and rotations work in float32 under autocast; the products need one dtype.
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
    """Attention, then an MLP, each behind its norm and added to its input."""

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
        """(B, T, width) -> (B, T, width); see Attention.

        `kept` (T',) are the places of the tokens that `attend` answers, where those are not all.
        """
        attended = self.attention(self.attention_norm(latents), rotation, attend)
        if kept is not None:
            latents = latents[:, kept]
        latents = latents + self.dropout(attended)
        out: Tensor = latents + self.dropout(self.mlp(self.mlp_norm(latents)))
        return out

    def residual_weights(self) -> list[Tensor]:
        """Those of the layers whose outputs are added to the residual stream."""
        return [self.attention.proj.weight, self.mlp[-1].get_parameter("weight")]
