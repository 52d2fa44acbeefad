"""The autoregressive transformer of Esser et al. (2021): condition tokens and codes in, logits out.

A sequence holds the condition tokens and then the window's codes, in raster order or in another one
of prior.orderings. Token ids 0 .. K-1 are codes and K .. K+condition_vocab_size-1 condition tokens,
in one embedding table; the head has logits for codes only. Architecture and defaults follow "Taming
transformers for high-resolution image synthesis", section 3.2 and appendix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError, Range
from prior.models.attention import Block, BlockConfig, Window
from prior.models.code_levels import code_embedding, code_head, code_terms
from prior.models.layers import NORMS, initialise_layer, run_block, scale_residual
from prior.models.rotary import Rotation, grid_coordinates, rotation_at
from prior.orderings import ORDERINGS, PUBLISHED_SEED, ROW_MAJOR, TokenOrder, token_order

POSITIONS = ("learned", "rope2d")


@dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig):
    """Sizes and parts of a GPT; the defaults are those of Esser et al. (2021).

    Raises ConfigError for values out of range, unknown names and combinations that do not work.
    """

    window: Window = 16
    """side, in codes, of the square windows it is trained on"""
    positions: str = "learned"
    """learned: one embedding for each position; rope2d: see prior.models.rotary"""
    ordering: str = ROW_MAJOR
    """a name in prior.orderings.ORDERINGS: the order in which the window's codes are predicted"""
    ordering_seed: Annotated[int, Range(least=0, most=2**32 - 1)] = PUBLISHED_SEED
    """seed of the ordering `random`"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("positions", POSITIONS)
        if self.positions == "rope2d" and self.head_dim % 4:
            raise ConfigError(
                f"rope2d rotates pairs of channels by row and by column, so width / num_heads "
                f"must be a multiple of 4; found {self.head_dim}."
            )
        self._check_choice("ordering", ORDERINGS)
        if self.positions == "rope2d" and self.ordering != ROW_MAJOR:
            raise ConfigError(
                f"rope2d encodes the position of the code that a token holds, which determines "
                f"the code to predict in the order {ROW_MAJOR} only, not in {self.ordering!r}. Use "
                f"learned positions."
            )

    @property
    def num_positions(self) -> int:
        """Length of the longest sequence: the condition tokens and a whole window."""
        return self.condition_length + self.window**2

    @property
    def default_stride(self) -> int:
        """Default stride of the sliding window: half the window."""
        return max(1, self.window // 2)

    @property
    def sequence_length(self) -> int:
        """Tokens read in training; the last code is predicted but never read."""
        return self.num_positions - 1


class GPT(nn.Module):
    """Decoder-only transformer over condition tokens and codes."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        num_tokens = config.codebook_size + config.condition_vocab_size
        self.token_embedding = code_embedding(config, num_tokens)
        self.position_embedding = (
            nn.Embedding(config.num_positions, config.width)
            if config.positions == "learned"
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = NORMS[config.norm](config.width, config.bias)
        self.head = code_head(config)
        self.recompute_activations = False
        """in training, store only the blocks' inputs and recompute their activations in the
        backward pass (gradient checkpointing)"""
        self._initialise()

    def token_order(self, rows: int, columns: int) -> TokenOrder | None:
        """The order in which the codes of a window are predicted; None for raster order."""
        config = self.config
        if config.ordering == ROW_MAJOR:
            return None
        device = self.token_embedding.weight.device
        return token_order(
            config.ordering, config.ordering_seed, config.window, rows, columns, device
        )

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions (condition_length + rows * columns,) of all tokens before and in a window.

        In a window narrower than the trained one, codes keep the positions of the trained window's
        left columns, and the last code of a row takes the trained row's last position, so that the
        code predicted after it is the first of the next row, as in training. In any order, the
        token read just before a code has the position that precedes that code's. Raises ConfigError
        when the window is larger than the trained one.
        """
        window, start = self.config.window, self.config.condition_length
        if rows > window or columns > window:
            raise ConfigError(
                f"A grid of {rows}x{columns} codes does not fit the prior's window of "
                f"{window}x{window}: cut windows from it."
            )
        device = self.token_embedding.weight.device
        order = self.token_order(rows, columns)
        if order is not None:
            positions = start + order.window_positions
            prefix = torch.arange(start - 1, device=device)
            return torch.cat([prefix, positions - 1, positions[-1:]])
        column = torch.arange(columns, device=device)
        column[-1] = window - 1
        cells = start + torch.arange(rows, device=device)[:, None] * window + column
        return torch.cat([torch.arange(start, device=device), cells.flatten()])

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Input of the first block (B, T, width) for tokens (B, T) at positions (T,)."""
        latents = self.token_embedding(tokens)
        if self.position_embedding is not None:
            latents = latents + self.position_embedding(positions)
        embedded: Tensor = self.dropout(latents)
        return embedded

    def features(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Input of the head (B, T, width) for tokens (B, T) at positions (T,)."""
        latents, rotation = self.embedded(tokens, positions), self.rotation(positions)
        for block in self.blocks:
            latents = run_block(block, self.recompute_activations, latents, rotation)
        features: Tensor = self.norm(latents)
        return features

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (B, T, K) of the code after each of tokens (B, T) int64.

        Positions (T,) default to those of a window of full width.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        logits: Tensor = self.head(self.features(tokens, positions))
        return logits

    def code_logits(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Logits (B, h, w, K) of codes (B, h, w), each from tokens (B, C) and the codes before it.

        Raises ConfigError when h or w exceeds the trained window.
        """
        logits: Tensor = self.head(self.code_features(condition_tokens, codes))
        return logits

    def code_features(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Input of the head (B, h, w, width) for codes (B, h, w); see code_logits."""
        order, sequence = self.token_order(*codes.shape[1:]), codes.flatten(1)
        if order is not None:
            sequence = sequence[:, order.cells]
        tokens = torch.cat([condition_tokens, sequence], dim=1)[:, :-1]
        positions = self.positions(*codes.shape[1:])[:-1]
        features = self.features(tokens, positions)[:, condition_tokens.shape[1] - 1 :]
        if order is not None:
            features = features[:, order.cells.argsort()]  # back to raster order
        cells: Tensor = features.unflatten(1, codes.shape[1:])
        return cells

    def nll(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Negative log-likelihood (B, h, w), in nats, of codes (B, h, w) after tokens (B, C)."""
        return code_nll(self.head, self.code_features(condition_tokens, codes), codes)

    def loss(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy, in nats a code, of codes (B, h, w) after tokens (B, C)."""
        return self.nll(condition_tokens, codes).mean()

    def rotation(self, positions: Tensor) -> Rotation | None:
        """Rotation of queries and keys at positions (T,); None with learned positions."""
        config = self.config
        if config.positions != "rope2d":
            return None
        rows, columns = grid_coordinates(positions, config.condition_length, config.window)
        return rotation_at(rows, columns, config.head_dim, self.token_embedding.weight.dtype)

    @torch.no_grad()
    def _initialise(self) -> None:
        self.apply(initialise_layer)
        if self.position_embedding is not None:
            nn.init.zeros_(self.position_embedding.weight)
        if self.config.scaled_residual:
            blocks = [module for module in self.modules() if isinstance(module, Block)]
            scale_residual([weight for block in blocks for weight in block.residual_weights()])


def code_nll(head: nn.Module, features: Tensor, codes: Tensor) -> Tensor:
    """Negative log-likelihood (...), in nats, of codes (...) by a head, from features (..., width).

    It is the same however the head predicts a code; see prior.models.code_levels.
    """
    parts = [cross_entropy(*term) for term in code_terms(head, features, codes)]
    return torch.stack(parts).sum(0)


def cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy (...), in nats, of codes (...) under logits (..., K), in float32."""
    logits = logits.flatten(0, -2).float()
    return F.cross_entropy(logits, codes.flatten(), reduction="none").view_as(codes)
