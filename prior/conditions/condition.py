"""What a condition of a prior is, and the registry of them.

A batch is a dict about the codes of B samples, of a whole canvas or of one window of it: `codes`
(B, h, w) int64, and one entry or several for each condition. Each condition's class lists the
entries it reads and how a window is cut from each; see prior.conditions.frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ops.config import ConfigError, Range, Registry, check_fields
from prior.conditions.frames import Entry

Shape = tuple[int, int]  # rows, columns
Vocabulary = Annotated[int, Range(least=1, most=2**24)]


class Condition(ABC):
    """One condition of a prior; a subclass is a frozen dataclass of its sizes.

    Each condition counts its tokens from 0; the last is the null token, which stands for each of
    its tokens where the condition is not given.
    """

    name: ClassVar[str]
    entries: ClassVar[Mapping[str, Entry]] = {}
    """The entries of a batch that it reads, all needed. One of the condition's own name comes from
    the code store's track of that name."""
    is_grid: ClassVar[bool] = False
    """Whether it has a token for each code, at the code's place; else it has `length` of them."""
    has_image_codes: ClassVar[bool] = False
    """Whether its tokens but the null token are codes of the tokenizer of the prior's own codes"""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def length(self) -> int:
        """Tokens in the prefix; 0 for a grid, which has as many as there are codes."""
        return 0

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of different tokens, null token included."""

    @property
    def null_token(self) -> int:
        """The token that means `not given`."""
        return self.vocab_size - 1

    @abstractmethod
    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Tokens (batch_size, length) int64 in 0 .. vocab_size-1, or (batch_size, h, w) of a grid.

        `shape` (h, w) is the codes'. Raises ConfigError where the batch lacks an entry, or holds
        values out of range.
        """

    @classmethod
    def from_track(cls, rows: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """The entries of a batch from rows (B, ...) of the track of its name, int64 or float64.

        Grids of codes have been cut to the window. `frames` (B, 4) are the windows in fractions of
        the views that the rows are about, see prior.conditions.frames.
        """
        return {cls.name: rows}

    def implied(
        self, entries: Mapping[str, Tensor], count: int, canvas: Shape
    ) -> Mapping[str, Tensor]:
        """What entries (count, ...) about a canvas (rows, columns) may leave out: defaults."""
        return {}

    def drawn(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator]
    ) -> Mapping[str, Tensor]:
        """Entries (B, ...) that training draws, by one generator a sample."""
        return {}


CONDITIONS: Registry[type[Condition]] = Registry("condition")


def entry_of(batch: Mapping[str, Any], name: str, shape: Sequence[int | None], help: str) -> Tensor:
    """An entry of a batch as a tensor on the CPU, of `shape`, in which None is any size.

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


def needs_track(name: str, value: str = "PATH") -> str:
    """The message where a batch lacks the entry that comes from a track."""
    return (
        f"The condition '{name}' needs the track of that name; encode with --track {name}={value}."
    )


def check_range(values: Tensor, lowest: int, highest: int, what: str) -> None:
    """Raise ConfigError, naming `what`, unless all values are lowest .. highest."""
    # Written this way round, nan is refused as well.
    if values.numel() and not (values.min() >= lowest and values.max() <= highest):
        raise ConfigError(
            f"{what} must be from {lowest} to {highest}; found {values.min().item()} to "
            f"{values.max().item()}."
        )


def check_names(names: Sequence[str], count: int, what: str) -> None:
    """Raise ConfigError unless there are no names, or `count` of them; `what` are counted."""
    if names and len(names) != count:
        raise ConfigError(f"{count} {what}, but {len(names)} names.")
