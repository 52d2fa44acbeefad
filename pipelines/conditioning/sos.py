"""`sos`: no condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pipelines.conditioning.conditioning import CONDITIONINGS, Conditioning
from pipelines.store import CodeStore
from prior.conditions import Condition, StartOfSequence


@CONDITIONINGS.register("sos")
class StartOfSequenceConditioning(Conditioning):
    """Nothing to give: a prior with this condition alone is unconditional."""

    name: ClassVar[str] = "sos"

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        return StartOfSequence()
