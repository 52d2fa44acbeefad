"""Reading on: what a GPT foretells next in many windows at once, each with its own cache.

The tokens of all runs go through every linear layer as the rows of one matrix, however many each
run has, so nothing is padded and weights are read once for all; only attention goes run by run,
over the run's own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.gpt import GPT
from prior.kv_cache import KVCache, cache_bytes


class Run(NamedTuple):
    """Tokens that follow those a cache holds, and will join them."""

    tokens: Tensor  # (P, T), T >= 1
    positions: Tensor  # (T,)
    cache: KVCache  # of P sequences


class Decoder:
    """Reads with a GPT, which is not in training and does not change meanwhile."""

    def __init__(self, model: GPT) -> None:
        self.config, self.positions = model.config, model.positions
        self._model, self._weight = model, model.token_embedding.weight

    @property
    def device(self) -> torch.device:
        return self._weight.device

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `length` tokens of `batch` sequences."""
        return KVCache(self.config, self._weight, batch, length)

    def cache_bytes(self, batch: int, length: int) -> int:
        """Memory that such a cache takes."""
        return cache_bytes(self.config, self._weight, batch, length)

    @torch.inference_mode()
    def read(self, runs: Sequence[Run]) -> Tensor:
        """Logits (R, P, K) of the code after each of R runs of P sequences each."""
        model, counts = self._model, [run.tokens.numel() for run in runs]
        tokens = torch.cat([run.tokens.flatten() for run in runs])
        positions = torch.cat([run.positions.repeat(len(run.tokens)) for run in runs])
        latents, rotation = model.embedded(tokens, positions)[None], model.rotation(positions)
        masks = [_mask(run) for run in runs]
        for layer, block in enumerate(model.blocks[:-1]):
            attend = partial(self._attend, runs, counts, masks, layer, False)
            latents = block(latents, rotation, attend)
        # Of the last block nothing but the last token's output is read.
        attend = partial(self._attend, runs, counts, masks, len(model.blocks) - 1, True)
        latents = model.blocks[-1](latents, rotation, attend, self._last_tokens(runs))
        for run in runs:
            run.cache.length += run.tokens.shape[1]
        return model.head(model.norm(latents)[0]).unflatten(0, (len(runs), -1))

    def _last_tokens(self, runs: Sequence[Run]) -> Tensor:
        """Which of all runs' tokens are the last of a sequence, (R * P,)."""
        lengths = [run.tokens.shape[1] for run in runs for _ in run.tokens]
        return torch.tensor(lengths, device=self.device).cumsum(0) - 1

    @staticmethod
    def _attend(
        runs: Sequence[Run],
        counts: Sequence[int],
        masks: Sequence[Tensor | None],
        layer: int,
        last_only: bool,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Attention of (1, heads, N, head_dim), each run's tokens over its own cache."""
        parts = []
        rows = (each[0].transpose(0, 1).split(counts) for each in (queries, keys, values))
        for run, mask, *qkv in zip(runs, masks, *rows, strict=True):
            # (P * T, heads, head_dim) -> (P, heads, T, head_dim)
            query, key, value = (x.unflatten(0, run.tokens.shape).transpose(1, 2) for x in qkv)
            key, value = run.cache.extend(layer, key, value)
            if last_only:
                query, mask = query[:, :, -1:], None
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=_is_whole(run) and not last_only
            )
            parts.append(attended.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts).transpose(0, 1)[None]


def _is_whole(run: Run) -> bool:
    return run.cache.length == 0 and run.tokens.shape[1] > 1


def _mask(run: Run) -> Tensor | None:
    """Which of the cache's tokens, its own among them, each token of a run sees; None: all."""
    length = run.tokens.shape[1]
    if length == 1 or _is_whole(run):
        return None
    total = run.cache.length + length
    seen = torch.ones(length, total, dtype=torch.bool, device=run.tokens.device)
    return seen.tril(total - length)
