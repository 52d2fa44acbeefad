"""A prior without windows: each code is foretold from those around it, on any canvas.

Position (row, column) receives the code on its left and foretells the code that stands there; in
column 0 it receives a border token. One more position closes each row: it receives the row's last
code, so that the rows below can know of it, and foretells nothing.

Attention reaches `radius` positions to the left in its own row, and as far to every side in as many
rows above. What is further away is heard of through the layers between. Positions turn half of each
head's numbers (prior.models.rotary); the other half compares content alone. The condition's tokens
have no place and only that half, so they look the same from everywhere.

Conditions that are grids are no such tokens: the position that foretells the code at (row, column)
receives, beside the code on its left, what the grids say there and around
(prior.models.depthwise_context).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops.config import ConfigError
from ops.cpu import Linear
from prior.models.attention import Attend, Attention, Block
from prior.models.depthwise_context import DepthwiseContext
from prior.models.gpt import cross_entropy
from prior.models.gpt_config import BASE, LARGE, SMALL, STUDY, TINY, BlockConfig
from prior.models.layers import NORMS, initialise_layer, scale_residual
from prior.models.neighbourhood import Layout, attend_in_bands, attend_in_blocks, band_mask
from prior.models.rotary import Rotation, rotate, rotation_at


@dataclass(frozen=True, kw_only=True)
class LocalConfig(BlockConfig):
    """Sizes and parts of a LocalGPT."""

    window: int = 32
    """the side, in codes, of the squares it is trained on; it paints any size"""
    radius: int = 8
    """how far attention reaches, in codes"""
    condition_grids: int = 0
    """how many conditions have a token for each code; condition_length counts the others' tokens"""
    depthwise_context: int = 2
    """how far around it, in codes, a position hears the grids"""
    norm: str = "rms"
    mlp: str = "swiglu"
    qk_norm: bool = True
    bias: bool = False
    scaled_residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.radius < 1:
            raise ConfigError(
                f"window and radius must be at least 1, found {self.window} and {self.radius}."
            )
        if self.condition_grids < 0 or self.depthwise_context < 0:
            raise ConfigError(
                f"condition_grids and look_around must be 0 or more, found {self.condition_grids} "
                f"and {self.depthwise_context}."
            )
        if self.head_dim % 8:
            raise ConfigError(
                f"half of each head turns, pairs by row and by column, so width / num_heads must "
                f"be a multiple of 8; found {self.head_dim}."
            )

    @property
    def reach(self) -> int:
        """How far away, in codes, a code can be that still weighs on another."""
        return self.radius * self.num_layers

    @property
    def shortest_condition(self) -> int:
        """A canvas starts from its border; only there must be something to be told."""
        return 0 if self.condition_grids else 1

    @property
    def default_stride(self) -> None:
        """There is no window to slide."""

    @property
    def sequence_length(self) -> int:
        """Tokens read in training: the condition and each row's border and codes."""
        return self.condition_length + self.window * (self.window + 1)

    @property
    def border_token(self) -> int:
        """What stands left of column 0."""
        return self.codebook_size + self.condition_vocab_size


class LocalAttention(Attention):
    """Attention whose vectors turn by half; `attend` says who sees whom.

    It takes and gives (B, T, heads, head_dim): tokens are gathered whole, all heads of one beside
    each other.
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
        queries, keys = turn_half(queries, rotation), turn_half(keys, rotation)
        # Norms and rotations work in float32 under autocast; the products need one dtype.
        attended = attend(queries.to(values.dtype), keys.to(values.dtype), values)
        return self.proj(attended.flatten(2))


class LocalGPT(nn.Module):
    """Codes of a canvas in, logits over each of them out."""

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.border_token + 1, config.width)
        self.depthwise_context = (
            DepthwiseContext(config.width, config.depthwise_context)
            if config.condition_grids
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        blocks = [Block(config, LocalAttention) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = NORMS[config.norm](config.width, config.bias)
        self.head = Linear(config.width, config.codebook_size, bias=False)
        self.recompute_activations = False
        """in training, keep the blocks' inputs only and compute the rest again backwards: less
        memory for a third more work"""
        self.apply(initialise_layer)
        if config.scaled_residual:
            scale_residual([weight for block in blocks for weight in block.residual_weights()])

    def code_logits(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Logits (B, h, w, K) of each of codes (B, h, w), from condition tokens and codes before.

        Those are (B, C + G * h * w): C for all codes alike, then G grids.
        """
        batch, rows, columns = codes.shape
        condition_tokens, grids = self.parted(condition_tokens, rows, columns)
        layout = Layout(condition_tokens.shape[1], rows, columns + 1)
        border = codes.new_full((batch, rows, 1), self.config.border_token)
        received = torch.cat([border, codes], dim=2)
        tokens = torch.cat([condition_tokens, received.flatten(1)], dim=1)
        latents = self.token_embedding(tokens)
        if self.depthwise_context is not None:
            # The position that closes a row foretells nothing, and hears of nothing.
            context = F.pad(self.depthwise_context(self.embed_grids(grids)), (0, 0, 0, 1)).flatten(
                1, 2
            )
            latents = latents + F.pad(context, (0, 0, layout.condition_length, 0))
        latents = self.dropout(latents)
        rotation = self.rotation_of(layout, codes.device)
        attend = self._attend(layout, codes.device)
        for block in self.blocks:
            latents = self._runner(block)(latents, rotation, attend)
        cells = latents[:, layout.condition_length :].unflatten(1, (rows, columns + 1))
        return self.head(self.norm(cells[:, :, :columns]))

    def parted(self, condition_tokens: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Condition tokens (B, C + G * rows * columns) as (B, C) and grids (B, G, rows, columns).

        Raises ConfigError where they are not as many.
        """
        first, grids = self.config.condition_length, self.config.condition_grids
        if grids and condition_tokens.shape[1] != first + grids * rows * columns:
            raise ConfigError(
                f"{condition_tokens.shape[1]} condition tokens beside {rows}x{columns} codes; this "
                f"prior needs {first} and {grids} grids as large."
            )
        if not grids:
            return condition_tokens, condition_tokens.new_empty(len(condition_tokens), 0, 0, 0)
        beside = condition_tokens[:, first:].unflatten(1, (grids, rows, columns))
        return condition_tokens[:, :first], beside

    def embed_grids(self, grids: Tensor) -> Tensor:
        """What grids (B, G, h, w) tell in each place, heard nowhere else yet: (B, h, w, width)."""
        return self.token_embedding(grids).sum(1)

    def nll(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Surprise (B, h, w), in nats, at each of codes (B, h, w), as code_logits reads them."""
        return cross_entropy(self.code_logits(condition_tokens, codes), codes)

    def uncut(self, true_edges: Tensor, rows: int, columns: int) -> Tensor:
        """Which cells (B, rows, columns) of crops are foretold from what a whole canvas would tell.

        `true_edges` (B, 4) says whether a crop's top, left, right and bottom are the canvas's own;
        the bottom matters where there are grids, of which codes hear from below. Cells that would
        hear of what lies beyond an edge that is none learn what is not so.
        """
        config, reach, device = self.config, self.config.reach, true_edges.device
        row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
        top, left, right, bottom = true_edges[:, :, None, None].unbind(1)
        # To the right a code is heard by way of the rows above, one more with each layer.
        right_reach = config.radius * row.clamp(max=config.num_layers)[:, None]
        # Of grids more is heard around each position; the one that closes a row hears none.
        around = config.depthwise_context if config.condition_grids else 0
        closing = 1 if config.condition_grids else 0
        return (
            (top | (row >= reach + around)[:, None])
            & (left | (column >= reach + max(1, around)))  # column 0 receives a border, no code
            & (right | (column + right_reach + around + closing <= columns))
            & (bottom | (row + around < rows)[:, None])
        )

    def rotation_of(self, layout: Layout, device: torch.device) -> Rotation:
        """How every token of a layout is turned; the condition's not by an angle, but away."""
        cells = torch.arange(layout.rows * layout.columns, device=device)
        return self.rotation(
            cells.div(layout.columns, rounding_mode="floor"),
            cells.remainder(layout.columns),
            layout.condition_length,
        )

    def rotation(self, rows: Tensor, columns: Tensor, placeless: int = 0) -> Rotation:
        """How `placeless` tokens of the condition, then positions at rows and columns, are turned.

        Angles are found in float64: far down a canvas float32 would round them.
        """
        exact = rotation_at(rows, columns, self.config.head_dim // 2, torch.float64)
        dtype = torch.promote_types(self.token_embedding.weight.dtype, torch.float32)
        # Sine and cosine of nothing are zeros here: half of such a key or query is nothing.
        nothing = exact.cosines.new_zeros(placeless, exact.cosines.shape[1])
        return Rotation(*(torch.cat([nothing, part]).to(dtype)[:, None] for part in exact))

    def _attend(self, layout: Layout, device: torch.device) -> Attend:
        radius = self.config.radius
        if device.type == "cuda":
            return partial(attend_in_blocks, layout=layout, radius=radius)
        mask = band_mask(layout, radius, device)
        return partial(attend_in_bands, layout=layout, radius=radius, mask=mask)

    def _runner(self, block: nn.Module) -> Callable[..., Tensor]:
        if self.recompute_activations and self.training and torch.is_grad_enabled():
            return partial(checkpoint, block, use_reentrant=False)
        return block


def turn_half(vectors: Tensor, rotation: Rotation) -> Tensor:
    """Vectors (..., head_dim) with the first half of their numbers turned."""
    turned, plain = vectors.chunk(2, dim=-1)
    return torch.cat([rotate(turned, rotation), plain], dim=-1)


# Sizes as the windowed presets of these names have them.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "study-local": {**STUDY, "radius": 6},
    "tiny-local": {**TINY, "radius": 6},
    "small-local": {**SMALL, "radius": 8},
    "base-local": {**BASE, "radius": 8},
    "large-local": {**LARGE, "radius": 8},
}
