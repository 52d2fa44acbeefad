"""`boxes`: bounding boxes of objects, and which part of the image the window shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ops.config import ConfigError, Range
from prior.conditions.condition import (
    CONDITIONS,
    Condition,
    Shape,
    Vocabulary,
    check_names,
    check_range,
    entry_of,
    needs_track,
)
from prior.conditions.frames import Entry, boxes_in, framed, out_of
from prior.conditions.places import Places, place_tokens

WHOLE = (0.0, 0.0, 1.0, 1.0)


@CONDITIONS.register("boxes")
@dataclass(frozen=True, kw_only=True)
class Boxes(Condition):
    """Objects by category and box, and the window's part of the image: 92 tokens by default.

    `batch["boxes"]` (B, N, 5) float32: category (-1: no object), x0, y0, x1, y1 in the window's
    frame, and `batch["crop"]` (B, 4) float32: x0, y0, x1, y1 of the window's frame in fractions of
    the whole image. An object is three tokens: its category, its top left place and its bottom
    right one. Objects outside the window are left out, those that reach out of it are cut; the
    `max_objects` largest of the others come in order of size. Where there are fewer, three null
    tokens each fill up. Two places, of `crop`, end it.
    """

    num_categories: Vocabulary
    category_names: tuple[str, ...] = ()
    max_objects: Annotated[int, Range(least=1, most=4096)] = 30
    places: Places = 32

    name: ClassVar[str] = "boxes"
    entries: ClassVar[Mapping[str, Entry]] = {
        "boxes": Entry(2, framed(boxes_in)),
        "crop": Entry(1, framed(lambda crops, frames: out_of(frames, crops))),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.category_names, self.num_categories, "categories")

    @property
    def length(self) -> int:
        return 3 * self.max_objects + 2

    @property
    def vocab_size(self) -> int:
        return self.num_categories + self.places**2 + 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch lacks boxes or crop, or there is no such category."""
        needs = needs_track(self.name)
        boxes = entry_of(batch, "boxes", (batch_size, None, 5), needs).to(torch.float32)
        crop = entry_of(batch, "crop", (batch_size, 4), needs).to(torch.float32)
        triples = self._objects(boxes).flatten(1)
        corners = place_tokens(crop.view(batch_size, 2, 2), self.places) + self.num_categories
        return torch.cat([triples, corners], dim=1)

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

    @classmethod
    def from_track(cls, rows: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """From rows (B, 1 + M, 5): first whether the view is mirrored and its x0, y0, x1, y1 in
        fractions of the image, then M boxes in fractions of the view.

        The crop of a mirrored view is in fractions of the mirrored image.
        """
        mirrored, view = rows[:, :1, 0], rows[:, 0, 1:]
        left, right = 1 - view[:, 2:3], 1 - view[:, 0:1]
        flipped = torch.cat([left, view[:, 1:2], right, view[:, 3:4]], dim=1)
        view = torch.where(mirrored > 0, flipped, view)
        return {
            "boxes": boxes_in(rows[:, 1:], frames).float(),
            "crop": out_of(frames, view).float(),
        }

    def implied(
        self, entries: Mapping[str, Tensor], count: int, canvas: Shape
    ) -> Mapping[str, Tensor]:
        """Given boxes are those of a whole image."""
        return {"crop": torch.tensor(WHOLE).expand(count, -1)} if "boxes" in entries else {}
