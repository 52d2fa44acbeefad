"""What is told by where things lie in the window: boxes around objects, and points of a pose.

A place is one token of a coarse grid over the window, `places` to each side: as published (Esser et
al. 2021, code: ObjectsBoundingBoxConditionalBuilder), round(x * (places - 1)) of its column and
likewise of its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ops.config import ConfigError
from prior.conditions.contract import CONDITIONS, Shape, check_range, entry


def place_tokens(points: Tensor, places: int) -> Tensor:
    """Tokens (...), 0 .. places**2 - 1, of points (..., 2) x, y in the window's frame; what lies
    outside is moved to its edge."""
    columns, rows = (points.clamp(0, 1) * (places - 1)).round().to(torch.int64).unbind(-1)
    return rows * places + columns


@CONDITIONS.register("boxes")
@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Objects by category and box, and the part of the picture that is seen: 92 tokens.

    `batch["boxes"]` (B, N, 5): category (-1: no object), x0, y0, x1, y1 in the window's frame, and
    `batch["crop"]` (B, 4): the window in the whole picture, see prior.conditions.frames. An
    object is three tokens: its category, its top left place and its bottom right one. Objects
    outside the window are left out, those that reach out of it are cut; the `max_objects` largest
    of the others come in order of size. Where there are fewer, three null tokens each fill up.
    Two places, of `crop`, end it. The null condition is the null token everywhere.
    """

    num_categories: int
    category_names: tuple[str, ...] = ()
    max_objects: int = 30
    places: int = 32

    name: ClassVar[str] = "boxes"
    entries: ClassVar[tuple[str, ...]] = ("boxes", "crop")
    is_grid: ClassVar[bool] = False
    in_frame: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("num_categories", "max_objects"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}.")
        _check_places(self.places)
        if self.category_names and len(self.category_names) != self.num_categories:
            raise ConfigError(
                f"{self.num_categories} categories, but {len(self.category_names)} names."
            )

    @property
    def length(self) -> int:
        return 3 * self.max_objects + 2

    @property
    def vocab_size(self) -> int:
        return self.num_categories + self.places**2 + 1

    @property
    def null_token(self) -> int:
        return self.vocab_size - 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch lacks boxes or crop, or there is no such category."""
        needs = (
            "The condition 'boxes' needs the track of that name; encode with --track boxes=PATH."
        )
        boxes = entry(batch, "boxes", (batch_size, None, 5), needs).to(torch.float32)
        crop = entry(batch, "crop", (batch_size, 4), needs).to(torch.float32)
        triples = self._objects(boxes).flatten(1)
        seen = place_tokens(crop.unflatten(1, (2, 2)), self.places) + self.num_categories
        return torch.cat([triples, seen], dim=1)

    def _objects(self, boxes: Tensor) -> Tensor:
        """Three tokens an object, (B, max_objects, 3)."""
        check_range(boxes[..., 0], -1, self.num_categories - 1, "Categories")
        there = boxes[..., 0] >= 0
        if not boxes[there].isfinite().all():
            raise ConfigError("A box must be four numbers; found one that is not finite.")
        first, last = boxes[..., 1:3].clamp(0, 1), boxes[..., 3:5].clamp(0, 1)
        sides = (last - first).clamp(min=0)
        sizes = sides.prod(-1).where(there, 0)
        order = sizes.argsort(dim=1, descending=True, stable=True)[:, : self.max_objects]
        tokens = torch.stack(
            [
                boxes[..., 0].to(torch.int64),
                place_tokens(first.where(there[..., None], 0), self.places) + self.num_categories,
                place_tokens(last.where(there[..., None], 0), self.places) + self.num_categories,
            ],
            dim=-1,
        )
        tokens = tokens.where(sizes[..., None] > 0, self.null_token)
        found = tokens.gather(1, order[..., None].expand(-1, -1, 3))
        missing = found.new_full((len(found), self.max_objects - found.shape[1], 3), 0)
        return torch.cat([found, missing + self.null_token], dim=1)


@CONDITIONS.register("keypoints")
@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """A pose: the place of each of `num_points` points, or that it is not in the window.

    `batch["keypoints"]` (B, num_points, 2): x, y in the window's frame, nan where there is none.
    `point_names` may name them.
    """

    num_points: int
    point_names: tuple[str, ...] = ()
    places: int = 32

    name: ClassVar[str] = "keypoints"
    entries: ClassVar[tuple[str, ...]] = ("keypoints",)
    is_grid: ClassVar[bool] = False
    in_frame: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ConfigError(f"num_points must be at least 1, found {self.num_points}.")
        _check_places(self.places)
        if self.point_names and len(self.point_names) != self.num_points:
            raise ConfigError(f"{self.num_points} points, but {len(self.point_names)} names.")

    @property
    def length(self) -> int:
        return self.num_points

    @property
    def vocab_size(self) -> int:
        return self.places**2 + 2  # every place, not there, nothing told

    @property
    def null_token(self) -> int:
        return self.vocab_size - 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch has no keypoints, or not as many."""
        points = entry(
            batch,
            "keypoints",
            (batch_size, self.num_points, 2),
            "The condition 'keypoints' needs the track of that name; encode with --track "
            "keypoints=PATH.",
        ).to(torch.float32)
        there = ((points >= 0) & (points <= 1)).all(-1)  # nan is neither
        tokens = place_tokens(points.where(there[..., None], 0), self.places)
        return tokens.where(there, self.places**2)


def _check_places(places: int) -> None:
    if places < 2:
        raise ConfigError(f"places must be at least 2 to a side, found {places}.")
