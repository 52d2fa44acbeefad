"""What is told with one token: nothing, or a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ops.config import ConfigError
from prior.conditions.contract import CONDITIONS, Shape


@CONDITIONS.register("sos")
@dataclass(frozen=True, kw_only=True)
class StartOfSequence:
    """One token that says nothing: the unconditional prior."""

    name: ClassVar[str] = "sos"
    entries: ClassVar[tuple[str, ...]] = ()
    is_grid: ClassVar[bool] = False
    in_frame: ClassVar[bool] = False
    length: ClassVar[int] = 1
    vocab_size: ClassVar[int] = 1
    null_token: ClassVar[int] = 0

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        return torch.zeros(batch_size, 1, dtype=torch.int64)


@CONDITIONS.register("class")
@dataclass(frozen=True, kw_only=True)
class ClassLabel:
    """`batch["label"]` (B,) in 0 .. num_classes-1; -1 says nothing. `label_names` may name them."""

    num_classes: int
    label_names: tuple[str, ...] = ()

    name: ClassVar[str] = "class"
    entries: ClassVar[tuple[str, ...]] = ("label",)
    is_grid: ClassVar[bool] = False
    in_frame: ClassVar[bool] = False
    length: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, found {self.num_classes}.")
        if self.label_names and len(self.label_names) != self.num_classes:
            raise ConfigError(f"{self.num_classes} classes, but {len(self.label_names)} names.")

    @property
    def vocab_size(self) -> int:
        return self.num_classes + 1

    @property
    def null_token(self) -> int:
        return self.num_classes

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
        return torch.where(labels < 0, self.num_classes, labels)
