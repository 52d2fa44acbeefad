"""What everything is that a prior can be told, and what it reads of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ops.config import ConfigError, Registry

Shape = tuple[int, int]


class Condition(Protocol):
    """The contract of everything in CONDITIONS: a frozen dataclass with these.

    Each condition counts its tokens from 0; one of them says that nothing is told.
    """

    name: ClassVar[str]
    entries: ClassVar[tuple[str, ...]]
    """the entries of a batch that it reads, all needed"""
    is_grid: ClassVar[bool]
    """whether its tokens lie as the codes do, one for each; else there are `length` of them"""
    in_frame: ClassVar[bool]
    """whether its tokens say where in the window something lies, so that each window has others"""

    @property
    def length(self) -> int:
        """Tokens in the prefix; 0 for a grid, which has as many as there are codes."""

    @property
    def vocab_size(self) -> int:
        """Different tokens, null token included."""

    @property
    def null_token(self) -> int:
        """What stands for each of its tokens when nothing is told."""

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """int64 in 0 .. vocab_size-1 from a batch of samples: (batch_size, length), or of a grid
        (batch_size, h, w), where `shape` (h, w) is the codes'.

        Raises ConfigError where the batch lacks an entry, or holds what cannot be told.
        """


CONDITIONS: Registry[type[Condition]] = Registry("condition")


def entry(batch: Mapping[str, Any], name: str, shape: Sequence[int | None], help: str) -> Tensor:
    """An entry of a batch as a tensor on the CPU, of `shape`, in which None is any number.

    Raises ConfigError where it is missing, saying `help`, or of another shape.
    """
    if batch.get(name) is None:
        raise ConfigError(help)
    value = torch.as_tensor(batch[name]).cpu()
    fits = len(value.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ConfigError(f"'{name}' must be ({wanted}), found {tuple(value.shape)}.")
    return value


def check_range(values: Tensor, lowest: int, highest: int, what: str) -> None:
    """Raise ConfigError, naming `what`, unless all values are lowest .. highest."""
    # Said this way round, nan is refused as well.
    if values.numel() and not (values.min() >= lowest and values.max() <= highest):
        raise ConfigError(
            f"{what} must be from {lowest} to {highest}; found {values.min().item()} to "
            f"{values.max().item()}."
        )
