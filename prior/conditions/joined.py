"""Several conditions as one sequence of tokens, which a prior reads before or with the codes.

Each condition's tokens are moved into its own part of the prior's vocabulary, behind the codes.
First come the tokens of those that are no grids, then the grids, each row by row, one after
another: (B, P + G * h * w) for G grids and codes (B, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ops.config import ConfigError, from_json, to_json
from prior.conditions.class_label import ClassLabel
from prior.conditions.condition import CONDITIONS, Condition, Shape
from prior.conditions.frames import Entry


class Conditions:
    """The conditions of one prior: `parts` in the order of their tokens, the grids last."""

    def __init__(self, parts: Sequence[Condition], codebook_size: int) -> None:
        """Raises ConfigError without any part: a prior needs something to start from."""
        if not parts:
            raise ConfigError("A prior needs at least one condition; 'sos' is the empty one.")
        self.parts = tuple(sorted(parts, key=lambda part: part.is_grid))  # stable
        self.codebook_size = codebook_size

    @property
    def length(self) -> int:
        """P: tokens that are no grid's."""
        return sum(part.length for part in self.parts)

    @property
    def num_grids(self) -> int:
        """G: conditions that have a token for each code."""
        return sum(part.is_grid for part in self.parts)

    @property
    def vocab_size(self) -> int:
        """Number of different tokens of all conditions; token 0 of the first is codebook_size."""
        return sum(part.vocab_size for part in self.parts)

    @property
    def image_code_tokens(self) -> tuple[int, ...]:
        """The first token, from 0, of each condition whose tokens are codes like the prior's own.

        They are followed by the condition's null token.
        """
        starts = accumulate((part.vocab_size for part in self.parts), initial=0)
        return tuple(
            start
            for part, start in zip(self.parts, starts, strict=False)
            if part.has_image_codes and part.vocab_size == self.codebook_size + 1
        )

    @property
    def entries(self) -> dict[str, Entry]:
        """The entries that a batch may hold for them, by name."""
        return {name: entry for part in self.parts for name, entry in part.entries.items()}

    @property
    def can_guide(self) -> bool:
        """Whether giving a condition makes a difference, so that guidance has a direction."""
        return any(part.vocab_size > 1 for part in self.parts)

    def tokens(
        self, batch: Mapping[str, Any], batch_size: int, shape: Shape | None = None
    ) -> Tensor:
        """Tokens (batch_size, P + G * h * w) int64 for the prior, from a batch of samples.

        `shape` (h, w) is by default that of `batch["codes"]`; without grids it does not matter.
        Raises ConfigError for a missing entry, or one out of range.
        """
        shape = self._shape(batch, shape)
        return self._join([part.tokens(batch, batch_size, shape) for part in self.parts])

    def available_tokens(
        self, batch: Mapping[str, Any], batch_size: int, shape: Shape | None = None
    ) -> Tensor:
        """The same, but null tokens for a condition of which the batch lacks an entry."""
        shape = self._shape(batch, shape)
        return self._join(
            [
                part.tokens(batch, batch_size, shape)
                if all(batch.get(name) is not None for name in part.entries)
                else _null_tokens(part, batch_size, shape)
                for part in self.parts
            ]
        )

    def null_tokens(self, batch_size: int, shape: Shape | None = None) -> Tensor:
        """Tokens (batch_size, P + G * h * w) where no condition is given.

        Raises ConfigError where there are grids, but no `shape` (h, w).
        """
        shape = self._shape({}, shape)
        return self._join([_null_tokens(part, batch_size, shape) for part in self.parts])

    def training_tokens(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator], drop_share: float
    ) -> Tensor:
        """Tokens (B, P + G * h * w) to train on, with conditions dropped at random.

        Guidance needs a prior that also predicts without conditions: of about `drop_share` of the
        samples all are dropped (Ho & Salimans 2022). Where there are several conditions, each of
        the other samples' is dropped with that chance as well, so that any can be given alone.
        `generators` (B) are the samples' own, and nothing else decides what is drawn.
        """
        count = len(generators)
        dropped = torch.stack([self._dropped(drop_share, generator) for generator in generators])
        batch, shape = self._with_drawn(batch, generators), self._shape(batch, None)
        parts = []
        for part, chosen in zip(self.parts, dropped.T, strict=True):
            tokens = part.tokens(batch, count, shape)
            chosen = chosen.view(-1, *[1] * (tokens.ndim - 1))
            parts.append(tokens.where(~chosen, part.null_token))
        return self._join(parts)

    def examples(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Entries for as many samples as there are generators: those of a batch, in turn."""
        count = len(batch["codes"])
        rows = [number % count for number in range(len(generators))]
        taken = {name: value[rows] for name, value in batch.items() if value is not None}
        taken = self._with_drawn(taken, generators)
        return {name: taken[name] for name in self.entries if name in taken}

    def label_number(self, label: str) -> int:
        """The number of a class given by its name or by its number.

        Raises ConfigError when there are no classes, or none such.
        """
        classes = next((part for part in self.parts if isinstance(part, ClassLabel)), None)
        if classes is None:
            raise ConfigError("This prior was trained without classes; leave the labels out.")
        return classes.number_of(label)

    def to_json(self) -> list[dict[str, Any]]:
        """A JSON list of the parts: each its registered name and its fields."""
        return [{"name": part.name, **to_json(part)} for part in self.parts]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]], codebook_size: int) -> Conditions:
        """The conditions that to_json described; raises ConfigError for anything else."""
        parts: list[Condition] = []
        for described in data:
            name = described.get("name") if isinstance(described, Mapping) else None
            if not isinstance(name, str) or name in {part.name for part in parts}:
                raise ConfigError("conditions must be a list of objects with different names.")
            fields = {key: value for key, value in described.items() if key != "name"}
            parts.append(from_json(CONDITIONS[name], fields))
        return cls(parts, codebook_size)

    def _shape(self, batch: Mapping[str, Any], shape: Shape | None) -> Shape:
        if shape is not None or not self.num_grids:
            return shape or (0, 0)
        if batch.get("codes") is None:
            raise ConfigError("Conditions that are grids need the shape of the codes.")
        rows, columns = batch["codes"].shape[1:]
        return rows, columns

    def _with_drawn(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator]
    ) -> dict[str, Any]:
        """The batch with the entries that are drawn in training."""
        drawn = dict(batch)
        for part in self.parts:
            drawn |= part.drawn(batch, generators)
        return drawn

    def _dropped(self, share: float, generator: torch.Generator) -> Tensor:
        """Which parts (len(parts),) of a sample are dropped."""
        can_drop = torch.tensor([part.vocab_size > 1 for part in self.parts])
        if share == 0 or not can_drop.any():
            return torch.zeros_like(can_drop)
        everything = torch.rand(1, generator=generator) < share
        if can_drop.sum() == 1:
            return everything & can_drop
        each = torch.rand(len(can_drop), generator=generator) < share
        return (everything | each) & can_drop

    def _join(self, tokens: Sequence[Tensor]) -> Tensor:
        offset, joined = self.codebook_size, []
        for part, own in zip(self.parts, tokens, strict=True):
            joined.append(own.flatten(1) + offset)
            offset += part.vocab_size
        return torch.cat(joined, dim=1)


def _null_tokens(part: Condition, batch_size: int, shape: Shape) -> Tensor:
    """A condition's tokens where it is not given."""
    size = shape if part.is_grid else (part.length,)
    return torch.full((batch_size, *size), part.null_token)
