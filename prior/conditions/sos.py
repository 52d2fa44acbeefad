"""`sos`: no condition, for priors that start from a single fixed token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prior.conditions.condition import CONDITIONS, Condition, Shape


@CONDITIONS.register("sos")
@dataclass(frozen=True, kw_only=True)
class StartOfSequence(Condition):
    """One token that is always the same: the unconditional prior."""

    name: ClassVar[str] = "sos"
    length: ClassVar[int] = 1
    vocab_size: ClassVar[int] = 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        return torch.zeros(batch_size, 1, dtype=torch.int64)
