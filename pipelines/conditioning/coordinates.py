"""`coordinates`: each code's place in the whole image, which follows from the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pipelines.conditioning.conditioning import CONDITIONINGS, Conditioning
from pipelines.store import CodeStore
from prior.conditions import Condition, Coordinates

NUM_TOKENS = 1024  # as published (Esser et al. 2021)


@CONDITIONINGS.register("coordinates")
class CoordinatesConditioning(Conditioning):
    """Given by the place of the window, in training and in sampling."""

    name: ClassVar[str] = "coordinates"

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        factor = stores[0].provenance["image"]["downsample_factor"]
        return Coordinates(codebook_size=NUM_TOKENS, downsample_factor=factor)
