"""Several conditions as the tokens that a prior reads before, or beside, the codes.

Each one's tokens are moved into its own part of the prior's vocabulary, behind the codes. First
come the tokens of those that are a prefix, then the grids, each row by row, one after another:
(B, P + G * h * w) for G grids beside codes (B, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ops.config import ConfigError, from_json, to_json
from prior.conditions.contract import CONDITIONS, Condition, Shape
from prior.conditions.labels import ClassLabel
from prior.conditions.masks import drawn_known


class Conditions:
    """What a prior is told: `parts` in the order of their tokens, the grids last."""

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
        return sum(part.vocab_size for part in self.parts)

    @property
    def entries(self) -> tuple[str, ...]:
        """What a batch may hold for it: see prior.conditions.frames for what each entry is."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.entries))

    @property
    def can_guide(self) -> bool:
        """Whether there is anything to be told, so that guidance has a direction."""
        return any(part.vocab_size > 1 for part in self.parts)

    def tokens(
        self, batch: Mapping[str, Any], batch_size: int, shape: Shape | None = None
    ) -> Tensor:
        """Tokens (batch_size, P + G * h * w) int64 for the prior, from a batch of samples.

        `shape` (h, w) is by default that of `batch["codes"]`; without grids it does not matter.
        Raises ConfigError for a missing entry, or one that cannot be told.
        """
        shape = self._shape(batch, shape)
        return self._join([part.tokens(batch, batch_size, shape) for part in self.parts])

    def tokens_of_what_is_there(
        self, batch: Mapping[str, Any], batch_size: int, shape: Shape | None = None
    ) -> Tensor:
        """The same, but a condition whose entries the batch lacks tells nothing."""
        shape = self._shape(batch, shape)
        return self._join(
            [
                part.tokens(batch, batch_size, shape)
                if all(batch.get(name) is not None for name in part.entries)
                else _nothing(part, batch_size, shape)
                for part in self.parts
            ]
        )

    def null_tokens(self, batch_size: int, shape: Shape | None = None) -> Tensor:
        """Tokens (batch_size, P + G * h * w) that tell nothing; `shape` (h, w) matters to grids.

        Raises ConfigError where there are grids, but no shape.
        """
        shape = self._shape({}, shape)
        return self._join([_nothing(part, batch_size, shape) for part in self.parts])

    def training_tokens(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator], drop_share: float
    ) -> Tensor:
        """Tokens (B, P + G * h * w) to learn from, with what training draws for each sample.

        Guidance needs a prior that also knows how to paint when told nothing: about `drop_share`
        of the samples are (Ho & Salimans 2022). Where there are several conditions, each of the
        other samples' is left out with that chance as well, so that any of them can be told alone.
        `inpaint` is told codes under a mask of the sample's own. `generators` (B) are the samples',
        and nothing else decides what is drawn.
        """
        count = len(generators)
        dropped = torch.stack([self._dropped(drop_share, generator) for generator in generators])
        batch, shape = self._with_known(batch, generators), self._shape(batch, None)
        parts = []
        for part, chosen in zip(self.parts, dropped.T, strict=True):
            tokens = part.tokens(batch, count, shape)
            chosen = chosen.view(-1, *[1] * (tokens.ndim - 1))
            parts.append(tokens.where(~chosen, part.null_token))
        return self._join(parts)

    def examples(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """What to tell as many samples as there are generators, as PaintOptions.told takes it:
        what a batch's are told, in turn."""
        count = len(batch["codes"])
        rows = [number % count for number in range(len(generators))]
        taken = {name: value[rows] for name, value in batch.items() if value is not None}
        taken = dict(self._with_known(taken, generators))
        return {name: taken[name] for name in self.entries if name in taken}

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

    def _shape(self, batch: Mapping[str, Any], shape: Shape | None) -> Shape:
        if shape is not None or not self.num_grids:
            return shape or (0, 0)
        if batch.get("codes") is None:
            raise ConfigError("Conditions that are grids need the shape of the codes.")
        rows, columns = batch["codes"].shape[1:]
        return rows, columns

    def _with_known(
        self, batch: Mapping[str, Any], generators: Sequence[torch.Generator]
    ) -> Mapping[str, Any]:
        """The batch with a mask for each sample, where a condition asks for one."""
        if "known" not in self.entries or batch.get("codes") is None:
            return batch
        rows, columns = batch["codes"].shape[1:]
        known = [drawn_known(rows, columns, generator) for generator in generators]
        return {**batch, "known": torch.stack(known)}

    def _dropped(self, share: float, generator: torch.Generator) -> Tensor:
        """Which parts (len(parts),) of a sample are not told."""
        telling = torch.tensor([part.vocab_size > 1 for part in self.parts])
        if share == 0 or not telling.any():
            return torch.zeros_like(telling)
        everything = torch.rand(1, generator=generator) < share
        if telling.sum() == 1:
            return everything & telling
        each = torch.rand(len(telling), generator=generator) < share
        return (everything | each) & telling

    def _join(self, tokens: Sequence[Tensor]) -> Tensor:
        offset, joined = self.codebook_size, []
        for part, own in zip(self.parts, tokens, strict=True):
            joined.append(own.flatten(1) + offset)
            offset += part.vocab_size
        return torch.cat(joined, dim=1)


def _nothing(part: Condition, batch_size: int, shape: Shape) -> Tensor:
    """A condition's tokens when nothing is told."""
    size = shape if part.is_grid else (part.length,)
    return torch.full((batch_size, *size), part.null_token)
