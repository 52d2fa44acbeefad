"""The paper's prior: a transformer that reads condition tokens and codes and foretells each code.

Tokens are one sequence: the condition's, then the window's codes row by row. Ids 0 .. K-1 are
codes and K .. K+condition_vocab_size-1 condition tokens, in one embedding table; the head speaks
of codes only. Esser et al., "Taming transformers for high-resolution image synthesis" (2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT. `window` is the side, in codes, of the square it was trained on."""

    codebook_size: int
    condition_vocab_size: int
    condition_length: int
    window: int = 16
    num_layers: int = 4
    num_heads: int = 4
    width: int = 256
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("codebook_size", "condition_vocab_size", "condition_length", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.num_layers < 1 or self.num_heads < 1 or self.width < self.num_heads:
            raise ConfigError("num_layers and num_heads must be at least 1, width num_heads.")
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not a multiple of {self.num_heads} heads.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), found {self.dropout}.")

    @property
    def num_positions(self) -> int:
        """The longest sequence: the condition and a whole window."""
        return self.condition_length + self.window**2


INITIAL_STD = 0.02
LATENT_FREQUENCY = 1.57  # in standard deviations, over the root of D: tried, not tuned

# What a preset leaves open (codebook_size, the condition's sizes) follows from the codes.
# "large" is the paper's GPT for depth and faces, "huge" its class-conditional ImageNet one.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"num_layers": 4, "num_heads": 4, "width": 256},
    "small": {"num_layers": 8, "num_heads": 8, "width": 512},
    "base": {"num_layers": 12, "num_heads": 12, "width": 768},
    "large": {"num_layers": 24, "num_heads": 16, "width": 1024},
    "huge": {"num_layers": 48, "num_heads": 16, "width": 1536},
}


class KVCache:
    """Keys and values of the tokens a model has read, so that it reads each of them once."""

    def __init__(self, model: GPT, batch: int, length: int) -> None:
        """Room for `length` tokens of `batch` sequences, on the model's device."""
        config, weight = model.config, model.head.weight
        shape = (batch, config.num_heads, length, config.width // config.num_heads)
        self.keys = [weight.new_empty(shape) for _ in range(config.num_layers)]
        self.values = [weight.new_empty(shape) for _ in range(config.num_layers)]
        self.length = 0  # tokens read so far; set it back to read others

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(tensor.nbytes for tensor in self.keys + self.values)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, head_dim) to one layer; returns all it holds, old and new.

        `length` moves on only when the model has passed every layer.
        """
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Attention(nn.Module):
    """Causal self-attention, many heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, latents: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        batch, length, width = latents.shape
        qkv = self.qkv(latents).view(batch, length, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_dim)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            **causal_mask(length, keys.shape[2], latents.device),
        )
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))


def causal_mask(length: int, total: int, device: torch.device) -> dict[str, Any]:
    """SDPA arguments: each of the last `length` of `total` tokens sees itself and those before."""
    if length == 1:
        return {}
    if length == total:
        return {"is_causal": True}
    mask = torch.ones(length, total, dtype=torch.bool, device=device)
    return {"attn_mask": mask.tril(total - length)}


class Block(nn.Module):
    """Attention, then an MLP with exact GELU, each behind its norm and added to its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, latents: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        attended = self.attention(self.attention_norm(latents), cache, layer)
        latents = latents + self.dropout(attended)
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))


class GPT(nn.Module):
    """Tokens in, logits over the next code out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        num_tokens = config.codebook_size + config.condition_vocab_size
        self.token_embedding = nn.Embedding(num_tokens, config.width)
        self.position_embedding = nn.Embedding(config.num_positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.codebook_size, bias=False)
        self.apply(_initialise)
        nn.init.zeros_(self.position_embedding.weight)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position (condition_length + rows * columns,) of every token before and in a window.

        In a window narrower than the trained one, codes keep the places they have in the trained
        one's left part, and a row's last code stands at the trained row's end: what is foretold
        after it is the next row's first code, as in training. Raises ConfigError when the window
        is larger than the trained one.
        """
        window, start = self.config.window, self.config.condition_length
        if rows > window or columns > window:
            raise ConfigError(
                f"A grid of {rows}x{columns} codes does not fit the prior's window of "
                f"{window}x{window}: cut windows from it."
            )
        device = self.head.weight.device
        place = torch.arange(columns, device=device)
        place[-1] = window - 1
        cells = start + torch.arange(rows, device=device)[:, None] * window + place
        return torch.cat([torch.arange(start, device=device), cells.flatten()])

    def features(self, tokens: Tensor, positions: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the head reads, (B, T, width), of tokens (B, T) at positions (T,).

        With a cache, `tokens` follow those the cache holds, and join them.
        """
        latents = self.token_embedding(tokens) + self.position_embedding(positions)
        latents = self.dropout(latents)
        for layer, block in enumerate(self.blocks):
            latents = block(latents, cache, layer)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(latents)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, *, cache: KVCache | None = None
    ) -> Tensor:
        """Logits (B, T, K) of the code that follows each of tokens (B, T) int64.

        Positions (T,) default to those of a full-width window, going on where the cache ends.
        """
        if positions is None:
            first = 0 if cache is None else cache.length
            positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        return self.head(self.features(tokens, positions, cache))

    def next_logits(self, tokens: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, K) of the code after the last of tokens (B, T): the head runs once."""
        return self.head(self.features(tokens, positions, cache)[:, -1])

    def loss(self, condition_tokens: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy, in nats a code, of codes (B, h, w) after tokens (B, C)."""
        targets = codes.flatten(1)
        tokens = torch.cat([condition_tokens, targets], dim=1)[:, :-1]
        positions = self.positions(*codes.shape[1:])[:-1]
        features = self.features(tokens, positions)[:, condition_tokens.shape[1] - 1 :]
        return F.cross_entropy(self.head(features).flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def start_alike(model: GPT, latents: Tensor) -> None:
    """Give codes that decode alike like embeddings and like rows of the head, before training.

    `latents` (K, D) is what each code stands for in its tokenizer. The rows become random Fourier
    features of them (Rahimi & Recht 2007), as large as the usual first weights, so that what is
    learned of a code holds for its neighbours at once. With 15,360 codes and little training that
    is worth 0.6 nats a code after 100 steps. Raises ConfigError for another number of codes.
    """
    config = model.config
    if latents.ndim != 2 or len(latents) != config.codebook_size:
        raise ConfigError(
            f"latents must be ({config.codebook_size}, D), one row a code; "
            f"found {tuple(latents.shape)}."
        )
    latents = latents.float().cpu()
    spread = (latents - latents.mean(0)) / latents.std(0).clamp(min=1e-6)
    scale = LATENT_FREQUENCY / latents.shape[1] ** 0.5  # distances grow with the root of D
    for weight in (model.token_embedding.weight, model.head.weight):
        frequencies = scale * torch.randn(latents.shape[1], config.width)
        phases = 2 * torch.pi * torch.rand(config.width)
        features = 2**0.5 * torch.cos(spread @ frequencies + phases)  # of variance 1
        weight[: config.codebook_size] = INITIAL_STD * features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
