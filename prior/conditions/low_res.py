"""`low_res`: the image itself at low resolution, for super-resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ops.config import Count
from prior.conditions.code_grids import CodeGrid
from prior.conditions.condition import CONDITIONS
from prior.conditions.frames import GRID, Entry


@CONDITIONS.register("low_res")
@dataclass(frozen=True, kw_only=True)
class LowResolution(CodeGrid):
    """The image shrunk and enlarged again, by the image tokenizer's codes.

    `ratio`, where known, is by how much it was shrunk.
    """

    ratio: Count | None = None

    name: ClassVar[str] = "low_res"
    entries: ClassVar[Mapping[str, Entry]] = {"low_res": GRID}
    has_image_codes: ClassVar[bool] = True
    encode_with: ClassVar[str] = "RATIO"
