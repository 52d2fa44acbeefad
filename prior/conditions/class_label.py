"""`class`: one class an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ops.config import ConfigError
from prior.conditions.condition import CONDITIONS, Condition, Shape, Vocabulary, check_names
from prior.conditions.frames import Entry


@CONDITIONS.register("class")
@dataclass(frozen=True, kw_only=True)
class ClassLabel(Condition):
    """`batch["label"]` (B,) in 0 .. num_classes-1, or -1 for none.

    `label_names`, if any, are the classes' names.
    """

    num_classes: Vocabulary
    label_names: tuple[str, ...] = ()

    name: ClassVar[str] = "class"
    entries: ClassVar[Mapping[str, Entry]] = {"label": Entry(0)}
    length: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.label_names, self.num_classes, "classes")

    @property
    def vocab_size(self) -> int:
        return self.num_classes + 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch has no labels, or one that is out of range."""
        if batch.get("label") is None:
            raise ConfigError("The condition 'class' needs labels, and these codes have none.")
        labels = torch.as_tensor(batch["label"]).to(torch.int64).cpu().reshape(batch_size, 1)
        if labels.min() < -1 or labels.max() >= self.num_classes:
            raise ConfigError(
                f"Labels must be from 0 to {self.num_classes - 1}, or -1 for none; found "
                f"{int(labels.min())} to {int(labels.max())}."
            )
        return torch.where(labels < 0, self.null_token, labels)

    def number_of(self, label: str) -> int:
        """The number of a class given by its name or number; ConfigError where there is none."""
        if label in self.label_names:
            return self.label_names.index(label)
        if label.isdecimal() and int(label) < self.num_classes:
            return int(label)
        names = ", ".join(self.label_names[:20]) or "no names"
        raise ConfigError(
            f"No label {label!r}: use 0 to {self.num_classes - 1} or a name ({names})."
        )
