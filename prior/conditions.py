"""What a prior is told before the first code: nothing, a class label, ... as tokens.

Each condition counts its tokens from 0. `Conditions` joins several into one prefix and moves each
one's tokens into its own part of the prior's vocabulary, behind the codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ops.config import ConfigError, Registry, from_json, to_json


class Condition(Protocol):
    """The contract of everything in CONDITIONS: a frozen dataclass with these."""

    name: ClassVar[str]

    @property
    def length(self) -> int:
        """Tokens in the prefix."""

    @property
    def vocab_size(self) -> int:
        """Different tokens, null token included."""

    def tokens(self, batch: Mapping[str, Any], batch_size: int) -> Tensor:
        """(batch_size, length) int64 in 0 .. vocab_size-1, from a batch of samples."""

    def null_tokens(self, batch_size: int) -> Tensor:
        """The same when nothing is told: what guidance leads away from."""


CONDITIONS: Registry[type[Condition]] = Registry("condition")


@CONDITIONS.register("sos")
@dataclass(frozen=True, kw_only=True)
class StartOfSequence:
    """One token that says nothing: the unconditional prior."""

    name: ClassVar[str] = "sos"
    length: ClassVar[int] = 1
    vocab_size: ClassVar[int] = 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int) -> Tensor:
        return self.null_tokens(batch_size)

    def null_tokens(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, 1, dtype=torch.int64)


@CONDITIONS.register("class")
@dataclass(frozen=True, kw_only=True)
class ClassLabel:
    """`batch["label"]` (B,) in 0 .. num_classes-1; -1 says nothing. `label_names` may name them."""

    num_classes: int
    label_names: tuple[str, ...] = ()

    name: ClassVar[str] = "class"
    length: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, found {self.num_classes}.")
        if self.label_names and len(self.label_names) != self.num_classes:
            raise ConfigError(f"{self.num_classes} classes, but {len(self.label_names)} names.")

    @property
    def vocab_size(self) -> int:
        return self.num_classes + 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int) -> Tensor:
        """Raises ConfigError when the batch has no labels, or one that is out of range."""
        if batch.get("label") is None:
            raise ConfigError("The condition 'class' needs labels, and these codes have none.")
        labels = torch.as_tensor(batch["label"]).to(torch.int64).reshape(batch_size, 1)
        if labels.min() < -1 or labels.max() >= self.num_classes:
            raise ConfigError(
                f"Labels must be from 0 to {self.num_classes - 1}, or -1 for none; found "
                f"{int(labels.min())} to {int(labels.max())}."
            )
        return torch.where(labels < 0, self.num_classes, labels)

    def null_tokens(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, 1), self.num_classes)


class Conditions:
    """Several conditions as one prefix of tokens."""

    def __init__(self, parts: Sequence[Condition], codebook_size: int) -> None:
        """Raises ConfigError without any part: a prior needs something to start from."""
        if not parts:
            raise ConfigError("A prior needs at least one condition; 'sos' is the empty one.")
        self.parts = tuple(parts)
        self.codebook_size = codebook_size

    @property
    def length(self) -> int:
        return sum(part.length for part in self.parts)

    @property
    def vocab_size(self) -> int:
        return sum(part.vocab_size for part in self.parts)

    @property
    def can_guide(self) -> bool:
        """Whether there is anything to be told, so that guidance has a direction."""
        return any(part.vocab_size > 1 for part in self.parts)

    def tokens(self, batch: Mapping[str, Any], batch_size: int) -> Tensor:
        """Prefix (batch_size, length) int64 for the prior, from a batch of samples."""
        return self._join([part.tokens(batch, batch_size) for part in self.parts])

    def null_tokens(self, batch_size: int) -> Tensor:
        """Prefix (batch_size, length) that tells nothing."""
        return self._join([part.null_tokens(batch_size) for part in self.parts])

    def drop(self, tokens: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """`tokens` (B, length) with about `share` of the rows told nothing, as guidance needs."""
        draws = torch.rand(len(tokens), 1, generator=generator).to(tokens.device)
        null_tokens = self.null_tokens(len(tokens)).to(tokens.device)
        return torch.where(draws < share, null_tokens, tokens)

    def label_number(self, label: str) -> int:
        """The number of a label given by its name or by its number.

        Raises ConfigError when there are no classes, or none such.
        """
        classes = next((part for part in self.parts if isinstance(part, ClassLabel)), None)
        if classes is None:
            raise ConfigError("This prior was trained without classes; leave the labels out.")
        if label in classes.label_names:
            return classes.label_names.index(label)
        if label.isdecimal() and int(label) < classes.num_classes:
            return int(label)
        names = ", ".join(classes.label_names[:20]) or "no names"
        raise ConfigError(
            f"No label {label!r}: use 0 to {classes.num_classes - 1} or a name ({names})."
        )

    def to_json(self) -> list[dict[str, Any]]:
        """A JSON list of the parts: each its registered name and its fields."""
        return [{"name": part.name, **to_json(part)} for part in self.parts]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]], codebook_size: int) -> Conditions:
        """The conditions that to_json described; raises ConfigError for unknown ones."""
        parts = []
        for entry in data:
            fields = {key: value for key, value in entry.items() if key != "name"}
            parts.append(from_json(CONDITIONS[entry["name"]], fields))
        return cls(parts, codebook_size)

    def _join(self, tokens: Sequence[Tensor]) -> Tensor:
        offset, joined = self.codebook_size, []
        for part, own in zip(self.parts, tokens, strict=True):
            joined.append(own + offset)
            offset += part.vocab_size
        return torch.cat(joined, dim=1)
