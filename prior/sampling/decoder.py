"""Reading on: what a GPT foretells next in many windows at once, each with its own cache.

The tokens of all runs go through every linear layer as the rows of one matrix, however many each
run has, so nothing is padded and weights are read once for all; only attention goes run by run,
over the run's own cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.models import GPT
from prior.sampling.kv_cache import KVCache, cache_bytes


class Cache(Protocol):
    """What a decoder keeps of the tokens that it has read."""

    length: int  # how many; set it back to read others


CacheT = TypeVar("CacheT", bound=Cache)


class Run(NamedTuple, Generic[CacheT]):
    """Tokens that follow those a cache holds, and will join them."""

    tokens: Tensor  # (P, T), T >= 1
    positions: Tensor  # (T,)
    cache: CacheT  # of P sequences
    shape: tuple[int, int]  # rows and columns of the window that they are of


class Decoder:
    """Reads with a GPT, which is not in training and does not change meanwhile."""

    def __init__(self, model: GPT) -> None:
        self.config, self.positions, self.token_order = (
            model.config,
            model.positions,
            model.token_order,
        )
        self.prefix_length = model.config.condition_length
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
    def read(self, runs: Sequence[Run[KVCache]]) -> Tensor:
        """Logits (R, P, K) of the code after each of R runs of P sequences each."""
        model, attention = self._model, RunAttention(runs)
        tokens = torch.cat([run.tokens.flatten() for run in runs])
        positions = torch.cat([run.positions.repeat(len(run.tokens)) for run in runs])
        latents, rotation = model.embedded(tokens, positions)[None], model.rotation(positions)
        for layer, block in enumerate(model.blocks[:-1]):
            latents = block(latents, rotation, partial(attention.all_tokens, layer))
        # Of the last block nothing but the last tokens' output is read.
        attend = partial(attention.last_tokens, len(model.blocks) - 1)
        latents = model.blocks[-1](latents, rotation, attend, attention.places_of_last())
        for run in runs:
            run.cache.length += run.tokens.shape[1]
        return model.head(model.norm(latents)[0]).unflatten(0, (len(runs), -1))


class RunAttention:
    """Attention of runs whose N tokens lie one after another, each run over its own cache."""

    def __init__(self, runs: Sequence[Run[KVCache]]) -> None:
        self._runs = runs
        self._counts = [run.tokens.numel() for run in runs]
        self._masks = [_mask(run) for run in runs]

    def places_of_last(self) -> Tensor:
        """Which of the N tokens are the last of a sequence, (R * P,)."""
        lengths = [run.tokens.shape[1] for run in self._runs for _ in run.tokens]
        return torch.tensor(lengths, device=self._runs[0].tokens.device).cumsum(0) - 1

    def all_tokens(self, layer: int, *qkv: Tensor) -> Tensor:
        """Attention (1, heads, N, head_dim) of queries, keys and values of that shape."""
        return self._joined(
            F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=_is_whole(run)
            )
            for run, mask, queries, keys, values in self._parted(layer, qkv)
        )

    def last_tokens(self, layer: int, *qkv: Tensor) -> Tensor:
        """The same of each sequence's last token alone, (1, heads, R * P, head_dim)."""
        return self._joined(
            F.scaled_dot_product_attention(queries[:, :, -1:], keys, values)
            for _, _, queries, keys, values in self._parted(layer, qkv)
        )

    def _parted(
        self, layer: int, qkv: Sequence[Tensor]
    ) -> Iterator[tuple[Run[KVCache], Tensor | None, Tensor, Tensor, Tensor]]:
        """For each run its queries (P, heads, T, head_dim), and all keys and values it sees."""
        parts = zip(*(each[0].transpose(0, 1).split(self._counts) for each in qkv), strict=True)
        for run, mask, own in zip(self._runs, self._masks, parts, strict=True):
            queries, keys, values = (
                part.unflatten(0, run.tokens.shape).transpose(1, 2) for part in own
            )
            yield run, mask, queries, *run.cache.extend(layer, keys, values)

    def _joined(self, attended: Iterable[Tensor]) -> Tensor:
        """What runs (P, heads, T, head_dim) have come to as one, (1, heads, N, head_dim)."""
        tokens = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in attended])
        return tokens.transpose(0, 1)[None]


def _is_whole(run: Run[KVCache]) -> bool:
    """Whether a run is all there is: then it sees what causal attention sees."""
    return run.cache.length == 0 and run.tokens.shape[1] > 1


def _mask(run: Run[KVCache]) -> Tensor | None:
    """Which of the cache's tokens, its own among them, each token of a run sees; None: all."""
    length = run.tokens.shape[1]
    if length == 1 or _is_whole(run):
        return None
    total = run.cache.length + length
    seen = torch.ones(length, total, dtype=torch.bool, device=run.tokens.device)
    return seen.tril(total - length)
