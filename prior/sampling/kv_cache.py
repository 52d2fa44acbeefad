"""What a model keeps of the tokens it has read."""

from __future__ import annotations

from torch import Tensor

from prior.models import GPTConfig


class KVCache:
    """Keys and values of the tokens that were read, so that each is read once."""

    def __init__(self, config: GPTConfig, like: Tensor, batch: int, length: int) -> None:
        """Room for `length` tokens of `batch` sequences, with the dtype and device of `like`."""
        shape = (batch, config.num_heads, length, config.head_dim)
        self.keys = [like.new_empty(shape) for _ in range(config.num_layers)]
        self.values = [like.new_empty(shape) for _ in range(config.num_layers)]
        self.length = 0  # tokens read so far; set it back to read others

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, head_dim) to one layer; returns all it holds, old and new.

        `length` moves on only when the model has passed every layer.
        """
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def cache_bytes(config: GPTConfig, like: Tensor, batch: int, length: int) -> int:
    """Memory that a KVCache takes."""
    return 2 * config.num_layers * batch * length * config.width * like.element_size()
