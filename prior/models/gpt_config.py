"""What a GPT is made of, and the sizes that have names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ops.config import ConfigError
from prior.models.layers import MLPS, NORMS
from prior.orderings import ORDERINGS, PUBLISHED_SEED, ROW_MAJOR

POSITIONS = ("learned", "rope2d")


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What every transformer over codes has: its vocabulary, its sizes, what its blocks are of."""

    codebook_size: int
    condition_vocab_size: int
    condition_length: int
    num_layers: int = 4
    num_heads: int = 4
    width: int = 256
    dropout: float = 0.0
    norm: str = "layer"
    """a name of prior.models.layers.NORMS"""
    mlp: str = "gelu"
    """a name of prior.models.layers.MLPS"""
    qk_norm: bool = False
    """norms for queries and keys: logits of attention cannot grow without bound (Henry et al.
    2020; for large image models Dehghani et al. 2023)"""
    bias: bool = True
    """whether linear layers and layer norms have biases"""
    scaled_residual: bool = False
    """first weights of what is added to the residual stream over sqrt(2 * num_layers), so that
    its variance does not grow with depth (Radford et al. 2019)"""

    def __post_init__(self) -> None:
        least = {"codebook_size": 1, "condition_vocab_size": 1}
        for name, lowest in {**least, "condition_length": self.shortest_condition}.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} must be at least {lowest}, found {getattr(self, name)}.")
        if self.num_layers < 1 or self.num_heads < 1 or self.width < self.num_heads:
            raise ConfigError("num_layers and num_heads must be at least 1, width num_heads.")
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not a multiple of {self.num_heads} heads.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), found {self.dropout}.")
        self._check_choice("norm", NORMS)
        self._check_choice("mlp", MLPS)

    def _check_choice(self, name: str, known: Collection[str]) -> None:
        if getattr(self, name) not in known:
            raise ConfigError(
                f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}."
            )

    @property
    def shortest_condition(self) -> int:
        """The least condition_length: a sequence starts from something."""
        return 1

    @property
    def head_dim(self) -> int:
        """Numbers in each head's queries, keys and values."""
        return self.width // self.num_heads


@dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig):
    """Sizes and parts of a GPT; what is left out is as in the paper."""

    window: int = 16
    """the side, in codes, of the square it was trained on"""
    positions: str = "learned"
    """learned: an embedding of each place; rope2d: see prior.models.rotary"""
    ordering: str = ROW_MAJOR
    """a name of prior.orderings.ORDERINGS: in which order the window's codes are foretold"""
    ordering_seed: int = PUBLISHED_SEED
    """of the random ordering"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, found {self.window}.")
        self._check_choice("positions", POSITIONS)
        if self.positions == "rope2d" and self.head_dim % 4:
            raise ConfigError(
                f"rope2d turns pairs by row and by column, so width / num_heads must be a "
                f"multiple of 4; found {self.head_dim}."
            )
        self._check_choice("ordering", ORDERINGS)
        if self.positions == "rope2d" and self.ordering != ROW_MAJOR:
            raise ConfigError(
                f"rope2d tells a token where its own code stands. Row by row that says which is "
                f"foretold next; in the order {self.ordering!r} not. Take learned positions."
            )
        if not 0 <= self.ordering_seed < 2**32:
            raise ConfigError(
                f"ordering_seed must be from 0 to 2**32 - 1, found {self.ordering_seed}."
            )

    @property
    def num_positions(self) -> int:
        """The longest sequence: the condition and a whole window."""
        return self.condition_length + self.window**2

    @property
    def default_stride(self) -> int:
        """How far the window slides where nothing is said: half of it."""
        return max(1, self.window // 2)

    @property
    def sequence_length(self) -> int:
        """Tokens read in training; the last code is foretold, never read."""
        return self.num_positions - 1


MODERN: Mapping[str, Any] = {
    "positions": "rope2d",
    "norm": "rms",
    "mlp": "swiglu",
    "qk_norm": True,
    "bias": False,
    "scaled_residual": True,
}

# A quarter of tiny's weights: many trainings side by side, as pipelines/studies needs them.
STUDY = {"num_layers": 4, "num_heads": 4, "width": 128}
TINY = {"num_layers": 4, "num_heads": 4, "width": 256}
SMALL = {"num_layers": 8, "num_heads": 8, "width": 512}
BASE = {"num_layers": 12, "num_heads": 12, "width": 768}
LARGE = {"num_layers": 24, "num_heads": 16, "width": 1024}

# What a preset leaves open (codebook_size, the condition's sizes) follows from the codes.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "study": STUDY,
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    # The published models for ImageNet from depth (drin) and for faces (faceshq).
    "large": LARGE,
    # The published models for FFHQ, and for COCO-Stuff from segmentations.
    "ffhq": {"num_layers": 28, "num_heads": 16, "width": 1024},
    "coco-stuff": {"num_layers": 32, "num_heads": 16, "width": 1280},
    # The published class-conditional ImageNet model (cin).
    "huge": {"num_layers": 48, "num_heads": 16, "width": 1536},
    # The same sizes made as later systems make them.
    "study-modern": {**STUDY, **MODERN},
    "tiny-modern": {**TINY, **MODERN},
    "base-modern": {**BASE, **MODERN},
    "large-modern": {**LARGE, **MODERN},
}
