"""A prior without windows: neighbourhood attention over a canvas of any size.

The position at (row, column) receives the code at its left and predicts the code at (row, column);
in column 0 it receives a border token. One more position ends each row: it receives the row's last
code, so that the rows below can attend to it, and predicts nothing.

Attention is that of prior.models.neighbourhood; codes further away than its radius act through
several layers. Half of each head's channels are rotated by position (prior.models.rotary), the
other half compare content only. Condition tokens have no position: their rotated half is zero, so
they look the same from everywhere.

Grid conditions are not part of the sequence. The position that predicts the code at (row, column)
receives, added to the code at its left, the grids' embeddings at and around that cell
(prior.models.depthwise_context).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError, Range
from prior.models.attention import Attend, Attention, Block, BlockConfig, Radius, Window
from prior.models.code_levels import code_embedding, code_head
from prior.models.depthwise_context import DepthwiseContext
from prior.models.gpt import code_nll
from prior.models.layers import NORMS, initialise_layer, run_block, scale_residual
from prior.models.neighbourhood import Layout, attend_in_bands, attend_in_blocks, band_mask
from prior.models.rotary import Rotation, rotate, rotation_at


@dataclass(frozen=True, kw_only=True)
class LocalConfig(BlockConfig):
    """Sizes and parts of a LocalGPT. Raises ConfigError for values out of range."""

    window: Window = 32
    """side, in codes, of the squares it is trained on; it samples canvases of any size"""
    radius: Radius = 8
    """reach of attention in one layer, in codes"""
    condition_grids: Annotated[int, Range(least=0, most=64)] = 0
    """number of conditions with a token for each code; condition_length counts all other tokens"""
    depthwise_context: Annotated[int, Range(least=0, most=64)] = 2
    """radius, in codes, of the convolution over grid conditions"""
    norm: str = "rms"
    mlp: str = "swiglu"
    qk_norm: bool = True
    bias: bool = False
    scaled_residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 8:
            raise ConfigError(
                f"half of each head's channels are rotated, in pairs by row and by column, so "
                f"width / num_heads must be a multiple of 8; found {self.head_dim}."
            )

    @property
    def reach(self) -> int:
        """Radius of the receptive field over all layers, in codes."""
        return self.radius * self.num_layers

    @property
    def min_condition_length(self) -> int:
        """0 with grid conditions; without any, one token at least."""
        return 0 if self.condition_grids else 1

    @property
    def default_stride(self) -> None:
        """None: there is no window to slide."""

    @property
    def sequence_length(self) -> int:
        """Tokens read in training: the condition's, and each row's border token and codes."""
        return self.condition_length + self.window * (self.window + 1)

    @property
    def border_token(self) -> int:
        """Token that the positions in column 0 receive."""
        return self.codebook_size + self.condition_vocab_size


class LocalAttention(Attention):
    """Attention with half of each head rotated; `attend`, which is required, sets the pattern.

    Here `attend` takes and returns (B, T, heads, head_dim), which keeps a token's heads contiguous
    for gathering.
    """

    def forward(
        self, latents: Tensor, rotation: Rotation | None, attend: Attend | None = None
    ) -> Tensor:
        """(B, T, width) -> (B, T, width)"""
        assert rotation is not None
        assert attend is not None
        qkv = self.qkv(latents).unflatten(-1, (3, self.config.num_heads, self.config.head_dim))
        queries, keys, values = qkv.unbind(2)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        # Norms and rotations return float32 under autocast; attention needs one dtype.
        attended = attend(queries.to(values.dtype), keys.to(values.dtype), values)
        projected: Tensor = self.proj(attended.flatten(2))
        return projected


class LocalGPT(nn.Module):
    """Transformer with causal neighbourhood attention over a canvas of codes."""

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = code_embedding(config, config.border_token + 1)
        self.depthwise_context = (
            DepthwiseContext(config.width, config.depthwise_context)
            if config.condition_grids
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        blocks = [Block(config, LocalAttention) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = NORMS[config.norm](config.width, config.bias)
        self.head = code_head(config)
        self.recompute_activations = False
        """in training, store only the blocks' inputs and recompute their activations in the
        backward pass (gradient checkpointing)"""
        self.apply(initialise_layer)
        if config.scaled_residual:
            scale_residual([weight for block in blocks for weight in block.residual_weights()])

    def code_logits(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Logits (B, h, w, K) of codes (B, h, w), each from the condition and the codes before it.

        `condition_tokens` (B, C + G * h * w) are C tokens for the whole canvas and then G grids.
        Raises ConfigError for another number of them.
        """
        logits: Tensor = self.head(self.code_features(condition_tokens, codes))
        return logits

    def code_features(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Input of the head (B, h, w, width) for codes (B, h, w); see code_logits."""
        batch, rows, columns = codes.shape
        condition_tokens, grids = self.split_tokens(condition_tokens, rows, columns)
        layout = Layout(condition_tokens.shape[1], rows, columns + 1)
        border = codes.new_full((batch, rows, 1), self.config.border_token)
        received = torch.cat([border, codes], dim=2)
        tokens = torch.cat([condition_tokens, received.flatten(1)], dim=1)
        latents = self.token_embedding(tokens)
        if self.depthwise_context is not None:
            # The position that ends a row predicts nothing, so it receives no grids.
            context = F.pad(self.depthwise_context(self.embed_grids(grids)), (0, 0, 0, 1))
            latents = latents + F.pad(context.flatten(1, 2), (0, 0, layout.condition_length, 0))
        latents = self.dropout(latents)
        rotation = self.rotation_of(layout, codes.device)
        attend = self._attend(layout, codes.device)
        for block in self.blocks:
            latents = run_block(block, self.recompute_activations, latents, rotation, attend)
        cells = latents[:, layout.condition_length :].unflatten(1, (rows, columns + 1))
        features: Tensor = self.norm(cells[:, :, :columns])
        return features

    def split_tokens(
        self, condition_tokens: Tensor, rows: int, columns: int
    ) -> tuple[Tensor, Tensor]:
        """Condition tokens (B, C + G * rows * columns) as (B, C) and grids (B, G, rows, columns).

        Raises ConfigError for another number of tokens.
        """
        first, grids = self.config.condition_length, self.config.condition_grids
        if grids and condition_tokens.shape[1] != first + grids * rows * columns:
            raise ConfigError(
                f"{condition_tokens.shape[1]} condition tokens for {rows}x{columns} codes; this "
                f"prior needs {first} and {grids} grids as large."
            )
        if not grids:
            return condition_tokens, condition_tokens.new_empty(len(condition_tokens), 0, 0, 0)
        aligned = condition_tokens[:, first:].unflatten(1, (grids, rows, columns))
        return condition_tokens[:, :first], aligned

    def embed_grids(self, grids: Tensor) -> Tensor:
        """Summed embeddings (B, h, w, width) of grids (B, G, h, w)."""
        embedded: Tensor = self.token_embedding(grids).sum(1)
        return embedded

    def nll(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Negative log-likelihood (B, h, w), in nats, of codes (B, h, w); see code_logits."""
        return code_nll(self.head, self.code_features(condition_tokens, codes), codes)

    def uncut(self, true_edges: Tensor, rows: int, columns: int) -> Tensor:
        """Cells (B, rows, columns) of crops whose logits are the same as on the whole canvas.

        `true_edges` (B, 4) says whether a crop's top, left, right and bottom edges are also the
        canvas's. The bottom edge matters only with grid conditions, which act from below. A cell
        whose receptive field crosses any other edge must not be trained on or measured: its input
        differs from the one it has when sampling.
        """
        config, reach, device = self.config, self.config.reach, true_edges.device
        row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
        top, left, right, bottom = true_edges[:, :, None, None].unbind(1)
        # Codes to the right act through the rows above, one row further up with each layer.
        right_reach = config.radius * row.clamp(max=config.num_layers)[:, None]
        # Grids add the radius of their convolution; the position that ends a row receives none.
        context = config.depthwise_context if config.condition_grids else 0
        row_end = 1 if config.condition_grids else 0
        return (
            (top | (row >= reach + context)[:, None])
            & (left | (column >= reach + max(1, context)))  # column 0 receives a border, no code
            & (right | (column + right_reach + context + row_end <= columns))
            & (bottom | (row + context < rows)[:, None])
        )

    def rotation_of(self, layout: Layout, device: torch.device) -> Rotation:
        """The rotation of all tokens of a layout; see rotation."""
        cells = torch.arange(layout.rows * layout.columns, device=device)
        return self.rotation(
            cells.div(layout.columns, rounding_mode="floor"),
            cells.remainder(layout.columns),
            layout.condition_length,
        )

    def rotation(self, rows: Tensor, columns: Tensor, condition_length: int = 0) -> Rotation:
        """The rotation of condition tokens, then of positions at rows and columns (T,).

        Angles are computed in float64: far down a canvas float32 would round them.
        """
        exact = rotation_at(rows, columns, self.config.head_dim // 2, torch.float64)
        dtype = torch.promote_types(self.token_embedding.weight.dtype, torch.float32)
        # Condition tokens have cosine and sine 0, which sets the rotated half of a vector to 0.
        parts = (F.pad(part, (0, 0, 0, 0, 0, 0, condition_length, 0)) for part in exact)
        # The second half, a group of its own, has cosine 1 and sine 0: it stays.
        cosines, sines = (part.to(dtype) for part in parts)
        ones, zeros = torch.ones_like(cosines), torch.zeros_like(sines)
        pairs = torch.cat([cosines, ones], dim=1), torch.cat([sines, zeros], dim=1)
        return Rotation(*(part[:, None] for part in pairs))

    def _attend(self, layout: Layout, device: torch.device) -> Attend:
        radius = self.config.radius
        if device.type == "cuda":
            return partial(attend_in_blocks, layout=layout, radius=radius)
        mask = band_mask(layout, radius, device)
        return partial(attend_in_bands, layout=layout, radius=radius, mask=mask)
