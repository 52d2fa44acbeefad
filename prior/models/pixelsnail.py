"""PixelSNAIL, the convolutional baseline of Esser et al. (2021, table 1).

Chen et al., "PixelSNAIL: an improved autoregressive generative model" (2018), after its published
code: gated residual blocks of causal convolutions alternate with attention over all preceding
codes. Differences: where it normalizes weights with a data-dependent initialization (Salimans &
Kingma 2016), embeddings and the last features go through layer norms here; and residual blocks are
narrower inside than outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError, Range, check_fields
from ops.cpu import Linear
from prior.models.attention import Dropout, Layers, Length, Vocabulary, Width, Window
from prior.models.code_levels import (
    Levels,
    Starts,
    check_code_levels,
    code_embedding,
    code_head,
)
from prior.models.gpt import code_nll
from prior.models.layers import initialise_layer, run_block

COORDINATES = 2  # channels that hold a cell's row and column
INITIAL_SCALE = 0.1  # of a residual block's last layer, as in the published code


@dataclass(frozen=True, kw_only=True)
class SnailConfig:
    """Sizes of a PixelSNAIL. Raises ConfigError for values out of range.

    The condition is P prefix tokens and then G grids with a token for each code.
    """

    codebook_size: Vocabulary
    condition_vocab_size: Vocabulary
    condition_length: Length
    """P, 0 or more"""
    condition_grids: Annotated[int, Range(least=0, most=64)] = 0
    """G"""
    window: Window = 16
    """side, in codes, of the square windows it is trained on"""
    num_blocks: Layers = 2
    """each ends with attention"""
    num_residuals: Annotated[int, Range(least=0, most=64)] = 2
    """residual blocks of 2x2 convolutions before each attention"""
    num_heads: Layers = 4
    width: Width = 256
    """channels of the features"""
    hidden: Width = 64
    """channels inside residual blocks"""
    dropout: Dropout = 0.0
    code_levels: Levels = ()
    """levels of a code, the first varying fastest, to embed it and predict it by: see
    prior.models.code_levels; none: each code by itself"""
    condition_codes: Starts = ()
    """with code_levels: first tokens, among the conditions' from 0, of those that are such codes"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % (2 * self.num_heads):
            raise ConfigError(
                f"half the width is divided among the heads, so width must be a multiple of "
                f"{2 * self.num_heads}; found {self.width}."
            )
        check_code_levels(self)

    @property
    def default_stride(self) -> int:
        """Default stride of the sliding window: half the window."""
        return max(1, self.window // 2)

    @property
    def sequence_length(self) -> int:
        """Tokens read in training."""
        return self.condition_length + (1 + self.condition_grids) * self.window**2

    def split_tokens(self, tokens: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Condition tokens (B, P + G * rows * columns) as the prefix (B, P) and the grids
        (B, G, rows, columns)."""
        length = self.condition_length
        shape = (self.condition_grids, rows, columns)
        return tokens[:, :length], tokens[:, length:].unflatten(1, shape)


class PixelSNAIL(nn.Module):
    """Causal convolutions and attention over a window of codes."""

    def __init__(self, config: SnailConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        vocab_size = config.codebook_size + config.condition_vocab_size
        self.token_embedding = code_embedding(config, vocab_size)
        self.embedding_norm = nn.LayerNorm(width)
        self.prefix_places: nn.Embedding | None = None
        if config.condition_length:
            self.prefix_places = nn.Embedding(config.condition_length, width)
        self.grids = grid_layers(width) if config.condition_grids else None
        self.above = nn.Conv2d(width, width, (1, 3), padding=(0, 1))
        self.left = nn.Conv2d(width, width, (2, 1))
        self.blocks = nn.ModuleList(SnailBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = code_head(config)
        self.recompute_activations = False
        """in training, store only the blocks' inputs and recompute their activations in the
        backward pass (gradient checkpointing)"""
        self.apply(initialise_layer)
        if self.prefix_places is not None:
            nn.init.zeros_(self.prefix_places.weight)

    def code_features(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Input of the head (B, h, w, width); see code_logits.

        Raises ConfigError when the window is larger than the trained one.
        """
        _, rows, columns = codes.shape
        window = self.config.window
        if rows > window or columns > window:
            raise ConfigError(
                f"A grid of {rows}x{columns} codes does not fit the prior's window of "
                f"{window}x{window}: cut windows from it."
            )
        prefix, grids = self.config.split_tokens(condition_tokens, rows, columns)
        prefix = self._embedded(prefix)
        if self.prefix_places is not None:
            prefix = prefix + self.prefix_places.weight
        context = self._context(prefix, grids)
        embedded = channels_first(self._embedded(codes))
        coordinates = self._coordinates(codes)
        # Shifted so that a cell receives neither its own code nor any later one.
        latents = shifted(self.above(embedded), down=1) + shifted(
            self.left(F.pad(embedded, (0, 0, 1, 0))), right=1
        )
        for block in self.blocks:
            latents = run_block(
                block, self.recompute_activations, latents, embedded, coordinates, prefix, context
            )
        features: Tensor = self.norm(F.elu(latents).permute(0, 2, 3, 1))
        return features

    def code_logits(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Logits (B, h, w, K) of codes (B, h, w), each from the condition and the codes before it.

        Condition tokens are (B, P + G * h * w): see SnailConfig. Raises ConfigError when the window
        is larger than the trained one.
        """
        logits: Tensor = self.head(self.code_features(condition_tokens, codes))
        return logits

    def nll(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Negative log-likelihood (B, h, w), in nats, of codes (B, h, w) after such tokens."""
        return code_nll(self.head, self.code_features(condition_tokens, codes), codes)

    def _embedded(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding_norm(self.token_embedding(tokens))
        return embedded

    def _context(self, prefix: Tensor, grids: Tensor) -> Tensor:
        """What conditions add at each cell: (B, width, h, w), or (B, width, 1, 1) without grids.

        The mean of the prefix is the same at every cell. Grids are known as a whole, so their
        convolutions are not causal.
        """
        length = max(1, prefix.shape[1])
        context = (prefix.sum(1) / length)[:, :, None, None]
        if self.grids is None:
            return context
        summed: Tensor = context + self.grids(channels_first(self._embedded(grids).mean(1)))
        return summed

    def _coordinates(self, codes: Tensor) -> Tensor:
        """Row and column (B, 2, h, w) of each cell, from -0.5 to 0.5 over the trained window."""
        sides = (torch.arange(side, device=codes.device) for side in codes.shape[1:])
        indices = torch.stack(torch.meshgrid(*sides, indexing="ij"))
        scaled = indices.to(self.token_embedding.weight.dtype) / self.config.window - 0.5
        return scaled.expand(len(codes), -1, -1, -1)


class SnailBlock(nn.Module):
    """Causal residual blocks, then attention over the preceding codes, added through a gate."""

    def __init__(self, config: SnailConfig) -> None:
        super().__init__()
        width, hidden, half = config.width, config.hidden, config.width // 2
        self._heads = config.num_heads
        residual = partial(GatedResidual, hidden=hidden, dropout=config.dropout)
        self.context = convolution(width, width)
        self.near = nn.ModuleList(residual(width, side=2) for _ in range(config.num_residuals))
        self.content = residual(2 * width + COORDINATES)
        self.keys_values = convolution(2 * width + COORDINATES, 2 * half)
        self.question = residual(width + COORDINATES)
        self.queries = convolution(width + COORDINATES, half)
        self.prefix_keys_values = Linear(width, 2 * half) if config.condition_length else None
        self.mix = residual(width, added=half)

    def forward(
        self,
        latents: Tensor,
        embedded: Tensor,
        coordinates: Tensor,
        prefix: Tensor,
        context: Tensor,
    ) -> Tensor:
        """Latents (B, width, h, w) -> the same shape.

        `embedded` (B, width, h, w) are the codes, `coordinates` (B, 2, h, w) their positions,
        `prefix` (B, P, width) the condition tokens and `context` what conditions add at each cell.
        """
        latents = latents + self.context(context)
        for layer in self.near:
            latents = layer(latents)
        # A key holds its cell's own code, so a cell attends to earlier cells only, not to itself.
        content = self.content(torch.cat([embedded, latents, coordinates], dim=1))
        keys_values = self.keys_values(content).flatten(2).mT
        if self.prefix_keys_values is not None:
            keys_values = torch.cat([self.prefix_keys_values(prefix), keys_values], dim=1)
        queries = self.queries(self.question(torch.cat([latents, coordinates], dim=1)))
        attended = self._attend(queries.flatten(2).mT, keys_values, prefix.shape[1])
        mixed: Tensor = self.mix(latents, attended.mT.unflatten(2, latents.shape[2:]))
        return mixed

    def _attend(self, queries: Tensor, keys_values: Tensor, prefix: int) -> Tensor:
        """Attention (B, T, width / 2) of T queries over the prefix and the cells before each."""
        # One all-zero key first: the first cell has no cell before it, and the prefix may be empty.
        # After as many unused queries as there are prefix tokens, cell i comes at position
        # prefix + i and attends to the keys 0 .. prefix + i. That is causal attention without a
        # mask, for which GPUs have faster kernels; they need contiguous channels.
        keys_values = F.pad(keys_values[:, :-1], (0, 0, 1, 0)).to(queries.dtype)
        queries = F.pad(queries, (0, 0, prefix, 0)).contiguous()
        queries, keys, values = (
            part.unflatten(2, (self._heads, -1)).transpose(1, 2)
            for part in (queries, *keys_values.chunk(2, dim=2))
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return attended[:, :, prefix:].transpose(1, 2).flatten(2)


class GatedResidual(nn.Module):
    """x + a * sigmoid(b), where a and b are two convolutions of x, causal with `side` above 1."""

    def __init__(
        self, width: int, hidden: int, dropout: float, side: int = 1, added: int = 0
    ) -> None:
        super().__init__()
        self._margin = (side - 1, 0, side - 1, 0)
        self.first = convolution(2 * width, hidden, side)
        self.added = convolution(2 * added, hidden) if added else None
        self.dropout = nn.Dropout(dropout)
        self.second = convolution(2 * hidden, 2 * width, side)
        with torch.no_grad():
            self.second.weight *= INITIAL_SCALE

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, width, h, w) -> the same; `added` (B, added, h, w) joins between the convolutions."""
        hidden = self.first(F.pad(concat_elu(x), self._margin))
        if self.added is not None and added is not None:
            hidden = hidden + self.added(concat_elu(added))
        hidden = self.dropout(concat_elu(hidden))
        values, gates = self.second(F.pad(hidden, self._margin)).chunk(2, dim=1)
        gated: Tensor = x + values * gates.sigmoid()
        return gated


def convolution(inputs: int, outputs: int, side: int = 1) -> nn.Conv2d:
    """A convolution of side x side cells."""
    # Dilation has no effect on one cell, but with it torch uses oneDNN on a single thread, too.
    return nn.Conv2d(inputs, outputs, side, dilation=2 if side == 1 else 1)


def grid_layers(width: int) -> nn.Sequential:
    """Two 3x3 convolutions over embedded grid conditions (B, width, h, w)."""
    first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ELU(), second)


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, (B, C, h, w) -> (B, 2C, h, w), after CReLU (Shang et al. 2016)."""
    return F.elu(torch.cat([x, -x], dim=1))


def shifted(x: Tensor, down: int = 0, right: int = 0) -> Tensor:
    """(..., h, w) shifted down and right by so many cells, with zeros shifted in."""
    rows, columns = x.shape[-2:]
    return F.pad(x, (right, 0, down, 0))[..., :rows, :columns]


def channels_first(features: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w)."""
    return features.permute(0, 3, 1, 2)
