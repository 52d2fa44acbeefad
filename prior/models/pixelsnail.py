"""PixelSNAIL, the convolutional prior that the paper compares its transformer with.

Chen et al., "PixelSNAIL: an improved autoregressive generative model" (2018), and its published
code: gated residual blocks of convolutions that see what lies above and to the left, and between
them attention over all codes before. It reads a window as a picture, so what is near is near in
every direction, and each layer weighs few cells. Where theirs normalises weights and finds their
first scale from data (Salimans & Kingma 2016), here embeddings and the last features go through
layer norms; their residual blocks are as wide inside as outside, these are narrower inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops.config import ConfigError
from ops.cpu import Linear
from prior.models.gpt import cross_entropy
from prior.models.layers import initialise_layer
from prior.models.snail_config import SnailConfig

PLACE = 2  # numbers that say where a cell lies
FIRST_SCALE = 0.1  # of what a residual block adds, as published


class PixelSNAIL(nn.Module):
    """Codes of a window in, logits over each of them out."""

    def __init__(self, config: SnailConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        vocab_size = config.codebook_size + config.condition_vocab_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.embedding_norm = nn.LayerNorm(width)
        self.prefix_places: nn.Embedding | None = None
        if config.condition_length:
            self.prefix_places = nn.Embedding(config.condition_length, width)
        self.grids = grid_layers(width) if config.condition_grids else None
        self.above = nn.Conv2d(width, width, (1, 3), padding=(0, 1))
        self.left = nn.Conv2d(width, width, (2, 1))
        self.blocks = nn.ModuleList(SnailBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, config.codebook_size, bias=False)
        self.recompute_activations = False
        """in training, keep the blocks' inputs only and compute the rest again backwards: less
        memory for a third more work"""
        self.apply(initialise_layer)
        if self.prefix_places is not None:
            nn.init.zeros_(self.prefix_places.weight)

    def features(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """What the head makes logits of, (B, h, w, width); see code_logits.

        Raises ConfigError when the window is larger than the trained one.
        """
        _, rows, columns = codes.shape
        window = self.config.window
        if rows > window or columns > window:
            raise ConfigError(
                f"A grid of {rows}x{columns} codes does not fit the prior's window of "
                f"{window}x{window}: cut windows from it."
            )
        prefix, grids = self.config.split(condition_tokens, rows, columns)
        prefix = self._embedded(prefix)
        if self.prefix_places is not None:
            prefix = prefix + self.prefix_places.weight
        context = self._context(prefix, grids)
        read = as_picture(self._embedded(codes))
        place = self._place(codes)
        # Nothing of a code goes into its own cell, nor anything of those behind it.
        latents = shifted(self.above(read), down=1) + shifted(
            self.left(F.pad(read, (0, 0, 1, 0))), right=1
        )
        for block in self.blocks:
            latents = self._runner(block)(latents, read, place, prefix, context)
        return self.norm(F.elu(latents).permute(0, 2, 3, 1))

    def code_logits(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Logits (B, h, w, K) of each of codes (B, h, w), from the condition and codes before.

        Condition tokens are (B, P + G * h * w): see SnailConfig.
        """
        return self.head(self.features(condition_tokens, codes))

    def nll(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Surprise (B, h, w), in nats, at each of codes (B, h, w) after such tokens."""
        return cross_entropy(self.code_logits(condition_tokens, codes), codes)

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.embedding_norm(self.token_embedding(tokens))

    def _context(self, prefix: Tensor, grids: Tensor) -> Tensor:
        """What each cell is told, (B, width, h, w) or, where there are no grids, (B, width, 1, 1).

        The prefix says the same everywhere; grids are known whole, so cells see to all sides.
        """
        length = max(1, prefix.shape[1])
        context = (prefix.sum(1) / length)[:, :, None, None]
        if self.grids is None:
            return context
        return context + self.grids(as_picture(self._embedded(grids).mean(1)))

    def _place(self, codes: Tensor) -> Tensor:
        """Row and column (B, 2, h, w) of each cell, -0.5 to 0.5 over the trained window."""
        sides = (torch.arange(side, device=codes.device) for side in codes.shape[1:])
        place = torch.stack(torch.meshgrid(*sides, indexing="ij"))
        place = place.to(self.token_embedding.weight.dtype) / self.config.window - 0.5
        return place.expand(len(codes), -1, -1, -1)

    def _runner(self, block: nn.Module) -> Callable[..., Tensor]:
        if self.recompute_activations and self.training and torch.is_grad_enabled():
            return partial(checkpoint, block, use_reentrant=False)
        return block


class SnailBlock(nn.Module):
    """Residual blocks that see what is near, then attention to all codes before, mixed in."""

    def __init__(self, config: SnailConfig) -> None:
        super().__init__()
        width, hidden, half = config.width, config.hidden, config.width // 2
        self._heads = config.num_heads
        residual = partial(GatedResidual, hidden=hidden, dropout=config.dropout)
        self.context = convolution(width, width)
        self.near = nn.ModuleList(residual(width, side=2) for _ in range(config.num_residuals))
        self.content = residual(2 * width + PLACE)
        self.keys_values = convolution(2 * width + PLACE, 2 * half)
        self.question = residual(width + PLACE)
        self.queries = convolution(width + PLACE, half)
        self.prefix_keys_values = Linear(width, 2 * half) if config.condition_length else None
        self.mix = residual(width, added=half)

    def forward(
        self, latents: Tensor, read: Tensor, place: Tensor, prefix: Tensor, context: Tensor
    ) -> Tensor:
        """Latents (B, width, h, w) -> the same, from codes `read` and where they lie (B, 2, h, w),
        and from what is told: tokens (B, P, width), and `heard` at each cell."""
        latents = latents + self.context(context)
        for layer in self.near:
            latents = layer(latents)
        # A key holds its cell's own code, so no cell looks at itself.
        content = self.content(torch.cat([read, latents, place], dim=1))
        keys_values = self.keys_values(content).flatten(2).mT
        if self.prefix_keys_values is not None:
            keys_values = torch.cat([self.prefix_keys_values(prefix), keys_values], dim=1)
        queries = self.queries(self.question(torch.cat([latents, place], dim=1)))
        mixed = self._attend(queries.flatten(2).mT, keys_values, prefix.shape[1])
        return self.mix(latents, mixed.mT.unflatten(2, latents.shape[2:]))

    def _attend(self, queries: Tensor, keys_values: Tensor, prefix: int) -> Tensor:
        """(B, T, width / 2) of as many queries, over `told` tokens and the cells before each."""
        # One more key that is nothing: the first cell has none before it, and may be told nothing.
        keys_values = F.pad(keys_values, (0, 0, 1, 0)).to(queries.dtype)
        cells = torch.arange(queries.shape[1], device=queries.device)
        before = F.pad(cells[:, None] > cells, (prefix + 1, 0), value=True)
        queries, keys, values = (
            part.unflatten(2, (self._heads, -1)).transpose(1, 2)
            for part in (queries, *keys_values.chunk(2, dim=2))
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=before)
        return attended.transpose(1, 2).flatten(2)


class GatedResidual(nn.Module):
    """x + a * sigmoid(b), both convolved twice from x; cells see `side` - 1 up and left."""

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
            self.second.weight *= FIRST_SCALE

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, width, h, w) -> the same; `added` (B, added, h, w) is heard between the two."""
        hidden = self.first(F.pad(concat_elu(x), self._margin))
        if self.added is not None and added is not None:
            hidden = hidden + self.added(concat_elu(added))
        hidden = self.dropout(concat_elu(hidden))
        values, gates = self.second(F.pad(hidden, self._margin)).chunk(2, dim=1)
        return x + values * gates.sigmoid()


def convolution(inputs: int, outputs: int, side: int = 1) -> nn.Conv2d:
    """Of squares of `side` cells."""
    # A single cell cannot be dilated, but asked for that torch uses oneDNN on one thread, too.
    return nn.Conv2d(inputs, outputs, side, dilation=2 if side == 1 else 1)


def grid_layers(width: int) -> nn.Sequential:
    """Of grids of the condition, embedded (B, width, h, w), what each cell hears of around it."""
    first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ELU(), second)


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, (B, C, h, w) -> (B, 2C, h, w): nothing is cut off (Shang et al. 2016)."""
    return F.elu(torch.cat([x, -x], dim=1))


def shifted(x: Tensor, down: int = 0, right: int = 0) -> Tensor:
    """(..., h, w) moved by so many cells, zeros in their place; what leaves the picture is gone."""
    rows, columns = x.shape[-2:]
    return F.pad(x, (right, 0, down, 0))[..., :rows, :columns]


def as_picture(features: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w)."""
    return features.permute(0, 3, 1, 2)
