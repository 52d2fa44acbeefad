"""What a model keeps of the tokens it has read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from prior.gpt import GPT


class KVCache:
    """Keys and values of the tokens a model has read, so that it reads each of them once."""

    def __init__(self, model: GPT, batch: int, length: int) -> None:
        """Room for `length` tokens of `batch` sequences, on the model's device."""
        config, weight = model.config, model.head.weight
        shape = (batch, config.num_heads, length, config.head_dim)
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
