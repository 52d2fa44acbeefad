"""Batched incremental decoding for many windows, each with its own KV cache.

The tokens of all requests are the rows of one matrix in every linear layer, however many each
request has, so nothing is padded and weights are read once for all. Only attention is computed per
request, over the request's own cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Generic, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.models import GPT
from prior.sampling.kv_cache import CacheT, KVCache, cache_bytes


class Request(NamedTuple, Generic[CacheT]):
    """Tokens that follow those in a cache, and are added to it."""

    tokens: Tensor  # (P, T), T >= 1
    positions: Tensor  # (T,)
    cache: CacheT  # of P sequences
    shape: tuple[int, int]  # rows and columns of their window


class Decoder:
    """Incremental decoding with a GPT in eval mode, whose weights must not change meanwhile."""

    def __init__(self, model: GPT) -> None:
        self.config = model.config
        self.positions, self.token_order = model.positions, model.token_order
        self.prefix_length = model.config.condition_length
        self.model, self._weight = model, model.token_embedding.weight

    @property
    def device(self) -> torch.device:
        return self._weight.device

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `length` tokens of `batch` sequences."""
        return KVCache(self.config, self._weight, batch, length)

    def cache_bytes(self, batch: int, length: int) -> int:
        """Bytes that such a cache takes."""
        return cache_bytes(self.config, self._weight, batch, length)

    @torch.inference_mode()
    def next_features(self, requests: Sequence[Request[KVCache]]) -> Tensor:
        """The head's inputs (R, P, width) after each of R requests of P sequences each.

        Extends the requests' caches by their tokens.
        """
        model, attention = self.model, RequestAttention(requests)
        tokens = torch.cat([request.tokens.flatten() for request in requests])
        positions = torch.cat(
            [request.positions.repeat(len(request.tokens)) for request in requests]
        )
        latents, rotation = model.embedded(tokens, positions)[None], model.rotation(positions)
        for layer, block in enumerate(model.blocks[:-1]):
            latents = block(latents, rotation, partial(attention.all_tokens, layer))
        # Of the last block only the output of each sequence's last token is needed.
        attend = partial(attention.last_tokens, len(model.blocks) - 1)
        latents = model.blocks[-1](latents, rotation, attend, attention.last_indices())
        for request in requests:
            request.cache.length += request.tokens.shape[1]
        features: Tensor = model.norm(latents)[0].unflatten(0, (len(requests), -1))
        return features


class RequestAttention:
    """Attention of the N concatenated tokens of all requests, each over its own cache."""

    def __init__(self, requests: Sequence[Request[KVCache]]) -> None:
        self._requests = requests
        self._counts = [request.tokens.numel() for request in requests]
        self._masks = [_mask(request) for request in requests]

    def last_indices(self) -> Tensor:
        """Which of the N tokens are the last of a sequence, (R * P,)."""
        lengths = [request.tokens.shape[1] for request in self._requests for _ in request.tokens]
        return torch.tensor(lengths, device=self._requests[0].tokens.device).cumsum(0) - 1

    def all_tokens(self, layer: int, *qkv: Tensor) -> Tensor:
        """Attention (1, heads, N, head_dim) of queries, keys and values of that shape."""
        return self._concatenated(
            F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=_starts_cache(request)
            )
            for request, mask, queries, keys, values in self._split(layer, qkv)
        )

    def last_tokens(self, layer: int, *qkv: Tensor) -> Tensor:
        """The same for each sequence's last token only, (1, heads, R * P, head_dim)."""
        return self._concatenated(
            F.scaled_dot_product_attention(queries[:, :, -1:], keys, values)
            for _, _, queries, keys, values in self._split(layer, qkv)
        )

    def _split(
        self, layer: int, qkv: Sequence[Tensor]
    ) -> Iterator[tuple[Request[KVCache], Tensor | None, Tensor, Tensor, Tensor]]:
        """For each request its queries (P, heads, T, head_dim), and its cache's keys and values."""
        parts = zip(*(each[0].transpose(0, 1).split(self._counts) for each in qkv), strict=True)
        for request, mask, own in zip(self._requests, self._masks, parts, strict=True):
            queries, keys, values = (
                part.unflatten(0, request.tokens.shape).transpose(1, 2) for part in own
            )
            yield request, mask, queries, *request.cache.extend(layer, keys, values)

    def _concatenated(self, attended: Iterable[Tensor]) -> Tensor:
        """The requests' outputs (P, heads, T, head_dim) as one, (1, heads, N, head_dim)."""
        tokens = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in attended])
        return tokens.transpose(0, 1)[None]


def _starts_cache(request: Request[KVCache]) -> bool:
    """Whether several tokens meet an empty cache: then plain causal attention needs no mask."""
    return request.cache.length == 0 and request.tokens.shape[1] > 1


def _mask(request: Request[KVCache]) -> Tensor | None:
    """Attention mask (T, length + T) of a request's tokens over its cache; None: no mask needed."""
    length = request.tokens.shape[1]
    if length == 1 or _starts_cache(request):
        return None
    total = request.cache.length + length
    visible = torch.ones(length, total, dtype=torch.bool, device=request.tokens.device)
    return visible.tril(total - length)
