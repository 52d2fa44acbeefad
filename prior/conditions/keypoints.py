"""`keypoints`: the points of a pose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ops.config import Range
from prior.conditions.condition import (
    CONDITIONS,
    Condition,
    Shape,
    check_names,
    entry_of,
    needs_track,
)
from prior.conditions.frames import Entry, framed, points_in
from prior.conditions.places import Places, place_tokens


@CONDITIONS.register("keypoints")
@dataclass(frozen=True, kw_only=True)
class Keypoints(Condition):
    """A pose: the place of each of `num_points` points, or that it is not in the window.

    `batch["keypoints"]` (B, num_points, 2) float32: x, y in the window's frame, nan where there is
    none. `point_names`, if any, are their names.
    """

    num_points: Annotated[int, Range(least=1, most=4096)]
    point_names: tuple[str, ...] = ()
    places: Places = 32

    name: ClassVar[str] = "keypoints"
    entries: ClassVar[Mapping[str, Entry]] = {"keypoints": Entry(2, framed(points_in))}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.point_names, self.num_points, "points")

    @property
    def length(self) -> int:
        return self.num_points

    @property
    def vocab_size(self) -> int:
        return self.places**2 + 2  # every place, not in the window, null token

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch has no keypoints, or not as many."""
        shape_of_points = (batch_size, self.num_points, 2)
        points = entry_of(batch, "keypoints", shape_of_points, needs_track(self.name))
        points = points.to(torch.float32)
        inside = ((points >= 0) & (points <= 1)).all(-1)  # nan is neither
        tokens = place_tokens(points.where(inside[..., None], 0), self.places)
        return tokens.where(inside, self.places**2)

    @classmethod
    def from_track(cls, rows: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """From rows (B, num_points, 2): x, y in fractions of the view."""
        return {"keypoints": points_in(rows, frames).float()}
