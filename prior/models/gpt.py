"""The paper's prior: a transformer that reads condition tokens and codes and foretells each code.

Tokens are one sequence: the condition's, then the window's codes, row by row or in another order
(prior.orderings). Ids 0 .. K-1 are
codes and K .. K+condition_vocab_size-1 condition tokens, in one embedding table; the head speaks
of codes only. Esser et al., "Taming transformers for high-resolution image synthesis" (2021).
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
from prior.models.attention import Block
from prior.models.gpt_config import GPTConfig
from prior.models.layers import NORMS, initialise_layer, scale_residual
from prior.models.rotary import Rotation, places, rotation_at
from prior.orderings import ROW_MAJOR, TokenOrder, token_order


class GPT(nn.Module):
    """Tokens in, logits over the next code out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        num_tokens = config.codebook_size + config.condition_vocab_size
        self.token_embedding = nn.Embedding(num_tokens, config.width)
        self.position_embedding = (
            nn.Embedding(config.num_positions, config.width)
            if config.positions == "learned"
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = NORMS[config.norm](config.width, config.bias)
        self.head = Linear(config.width, config.codebook_size, bias=False)
        self.recompute_activations = False
        """in training, keep the blocks' inputs only and compute the rest again backwards: less
        memory for a third more work"""
        self._initialise()

    def token_order(self, rows: int, columns: int) -> TokenOrder | None:
        """The order in which the codes of a window are read and foretold; None for row by row."""
        config = self.config
        if config.ordering == ROW_MAJOR:
            return None
        device = self.token_embedding.weight.device
        return token_order(
            config.ordering, config.ordering_seed, config.window, rows, columns, device
        )

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position (condition_length + rows * columns,) of every token before and in a window.

        In a window narrower than the trained one, codes keep the places they have in the trained
        one's left part, and a row's last code stands at the trained row's end: what is foretold
        after it is the next row's first code, as in training. In any order: what is read just
        before a code stands at the place before that code's. Raises ConfigError when the window is
        larger than the trained one.
        """
        window, start = self.config.window, self.config.condition_length
        if rows > window or columns > window:
            raise ConfigError(
                f"A grid of {rows}x{columns} codes does not fit the prior's window of "
                f"{window}x{window}: cut windows from it."
            )
        way = self.token_order(rows, columns)
        if way is not None:
            places = start + way.places
            prefix = torch.arange(start - 1, device=places.device)
            return torch.cat([prefix, places - 1, places[-1:]])
        device = self.token_embedding.weight.device
        place = torch.arange(columns, device=device)
        place[-1] = window - 1
        cells = start + torch.arange(rows, device=device)[:, None] * window + place
        return torch.cat([torch.arange(start, device=device), cells.flatten()])

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads, (B, T, width), of tokens (B, T) at positions (T,)."""
        latents = self.token_embedding(tokens)
        if self.position_embedding is not None:
            latents = latents + self.position_embedding(positions)
        return self.dropout(latents)

    def features(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the head reads, (B, T, width), of tokens (B, T) at positions (T,)."""
        latents, rotation = self.embedded(tokens, positions), self.rotation(positions)
        for block in self.blocks:
            latents = self._runner(block)(latents, rotation)
        return self.norm(latents)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (B, T, K) of the code that follows each of tokens (B, T) int64.

        Positions (T,) default to those of a full-width window.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.features(tokens, positions))

    def code_logits(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Logits (B, h, w, K) of each of codes (B, h, w), from tokens (B, C) and codes before."""
        way, sequence = self.token_order(*codes.shape[1:]), codes.flatten(1)
        if way is not None:
            sequence = sequence[:, way.cells]
        tokens = torch.cat([condition_tokens, sequence], dim=1)[:, :-1]
        positions = self.positions(*codes.shape[1:])[:-1]
        features = self.features(tokens, positions)[:, condition_tokens.shape[1] - 1 :]
        if way is not None:
            features = features[:, way.cells.argsort()]  # back to where each code stands
        return self.head(features).unflatten(1, codes.shape[1:])

    def nll(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Surprise (B, h, w), in nats, at each of codes (B, h, w) after tokens (B, C)."""
        return cross_entropy(self.code_logits(condition_tokens, codes), codes)

    def loss(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy, in nats a code, of codes (B, h, w) after tokens (B, C)."""
        return self.nll(condition_tokens, codes).mean()

    def rotation(self, positions: Tensor) -> Rotation | None:
        """By what the blocks turn tokens at positions (T,), where places are told that way."""
        config = self.config
        if config.positions != "rope2d":
            return None
        rows, columns = places(positions, config.condition_length, config.window)
        return rotation_at(rows, columns, config.head_dim, self.token_embedding.weight.dtype)

    def _runner(self, block: nn.Module) -> Callable[..., Tensor]:
        if self.recompute_activations and self.training and torch.is_grad_enabled():
            return partial(checkpoint, block, use_reentrant=False)
        return block

    @torch.no_grad()
    def _initialise(self) -> None:
        self.apply(initialise_layer)
        if self.position_embedding is not None:
            nn.init.zeros_(self.position_embedding.weight)
        if self.config.scaled_residual:
            blocks = [module for module in self.modules() if isinstance(module, Block)]
            scale_residual([weight for block in blocks for weight in block.residual_weights()])


def cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy (...), in nats, of codes (...) under logits (..., K), in float32."""
    logits = logits.flatten(0, -2).float()
    return F.cross_entropy(logits, codes.flatten(), reduction="none").view_as(codes)
