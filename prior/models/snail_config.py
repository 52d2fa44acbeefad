"""What a PixelSNAIL is made of, and the sizes that have names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ops.config import ConfigError
from prior.models.gpt_config import SMALL, STUDY, TINY


@dataclass(frozen=True, kw_only=True)
class SnailConfig:
    """Sizes of a PixelSNAIL.

    Its condition is P tokens before all codes, then G grids of a token beside each code.
    """

    codebook_size: int
    condition_vocab_size: int
    condition_length: int
    """P: may be 0"""
    condition_grids: int = 0
    """G"""
    window: int = 16
    """the side, in codes, of the square it was trained on"""
    num_blocks: int = 2
    """each ends with attention"""
    num_residuals: int = 2
    """residual blocks of 2x2 convolutions before each attention"""
    num_heads: int = 4
    width: int = 256
    """channels of the features"""
    hidden: int = 64
    """channels inside residual blocks"""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        least = {"condition_length": 0, "condition_grids": 0, "num_residuals": 0}
        sizes = ("codebook_size", "condition_vocab_size", "window", "num_blocks", "num_heads")
        for name in (*least, *sizes, "width", "hidden"):
            if getattr(self, name) < least.get(name, 1):
                raise ConfigError(
                    f"{name} must be at least {least.get(name, 1)}, found {getattr(self, name)}."
                )
        if self.width % (2 * self.num_heads):
            raise ConfigError(
                f"half the width is parted among the heads: {self.width} is no multiple of "
                f"{2 * self.num_heads}."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), found {self.dropout}.")

    @property
    def default_stride(self) -> int:
        """How far the window slides where nothing is said: half of it."""
        return max(1, self.window // 2)

    @property
    def sequence_length(self) -> int:
        """Tokens read in training."""
        return self.condition_length + (1 + self.condition_grids) * self.window**2

    def split(self, tokens: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Condition tokens (B, P + G * rows * columns) as the prefix (B, P) and the grids
        (B, G, rows, columns)."""
        length = self.condition_length
        shape = (self.condition_grids, rows, columns)
        return tokens[:, :length], tokens[:, length:].unflatten(1, shape)


def _like(transformer: Mapping[str, int]) -> Mapping[str, int]:
    """Sizes with as many weights as a transformer's: two of its layers are one block."""
    return {
        "num_blocks": transformer["num_layers"] // 2,
        "num_heads": transformer["num_heads"],
        "width": transformer["width"],
        "hidden": transformer["width"] // 4,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "study-snail": _like(STUDY),
    "tiny-snail": _like(TINY),
    "small-snail": _like(SMALL),
}
