"""`boxes`: objects by category and bounding box, from lines of an annotation file."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.images import ImageArray
from ops.text import printable
from ops.views import View
from pipelines.conditioning.annotations import AnnotationConditioning, colour_of
from pipelines.conditioning.conditioning import CONDITIONINGS, track_provenance
from pipelines.conditioning.files import NAMED, ConditionFiles, annotation_lines
from pipelines.inputs import Lines, are_numbers, read_lines
from pipelines.store import CodeStore
from pipelines.tracks import AnnotationTrack, Numbers, Track, points_in_view
from prior.conditions import Boxes, Condition

MAX_OBJECTS = 30  # of an image, as published (Esser et al. 2021)
ABSENT = -1  # the category of a row's line that holds no object


class Box(NamedTuple):
    """An object, in pixels of the upright image."""

    category: str
    left: float
    top: float
    width: float
    height: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def parse_box(line: dict[str, Any]) -> Box | None:
    """A box of {"file", "category", "bbox": [x, y, width, height]}, None for a line without one;
    ValueError for a line that cannot be used."""
    if line.get("bbox") is None:
        return None
    box, category = line["bbox"], line.get("category")
    if not isinstance(category, str) or not category:
        raise ValueError('no "category"')
    if not are_numbers(box, 4):
        raise ValueError(f"bbox {reprlib.repr(box)} is not [x, y, width, height]")
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"bbox {reprlib.repr(box)} has no area")
    return Box(category, *map(float, box))


class BoxesTrack(AnnotationTrack):
    """Rows (1 + MAX_OBJECTS, 5). The first line is the view: mirrored (0 or 1), left, top, right
    and bottom in fractions of the upright image. Then each object of which the view shows
    something, the largest of the image first: category, left, top, right and bottom in fractions of
    the view, which may be outside of it; the lines after the last object are ABSENT and zeros."""

    def read(self) -> Lines:
        return read_lines(self.path, parse_box)

    def meaning(self) -> dict[str, Any]:
        boxes: list[Box] = [box for items in self.lines.found.values() for box in items]
        self._categories = self.numbered("categories", {box.category for box in boxes})
        return {"row_shape": [1 + MAX_OBJECTS, 5], "categories": self._categories}

    def row(self, items: Sequence[Box], size: tuple[int, int], view: View) -> Numbers:
        row = np.zeros((1 + MAX_OBJECTS, 5))
        row[0] = view
        row[1:, 0] = ABSENT
        largest_first = sorted(items, key=lambda box: -box.width * box.height)
        shown = [line for box in largest_first if (line := self._line(box, size, view))]
        for place, line in enumerate(shown[:MAX_OBJECTS], 1):
            row[place] = line
        return row

    def _line(self, box: Box, size: tuple[int, int], view: View) -> tuple[float, ...] | None:
        """A box's line; None where the view shows nothing of it."""
        corners = np.array(box.corners).reshape(2, 2)
        (x0, y0), (x1, y1) = points_in_view(corners, size, view).tolist()
        x0, x1 = min(x0, x1), max(x0, x1)
        if x1 <= 0 or x0 >= 1 or y1 <= 0 or y0 >= 1:
            return None
        return (self._categories.index(box.category), x0, y0, x1, y1)


@CONDITIONINGS.register("boxes")
class BoxesConditioning(AnnotationConditioning[Boxes, Box]):
    """Each item is the boxes of one image."""

    name: ClassVar[str] = "boxes"
    track: ClassVar[type[Track] | None] = BoxesTrack

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        names = tuple(track_provenance(stores, cls.name)["categories"])
        return Boxes(num_categories=len(names), category_names=names)

    @classmethod
    def parse(cls, path: Path, part: Boxes) -> ConditionFiles:
        def check(box: Box) -> str | None:
            if box.category in part.category_names:
                return None
            known = printable(", ".join(part.category_names[:NAMED]))
            return f"no category {reprlib.repr(box.category)}, but {known}"

        return annotation_lines(cls.name, path, parse_box, check)

    def encode(self, item: Sequence[Box]) -> dict[str, Tensor]:
        """Objects (max_objects or more, 5) in fractions of the canvas; -1 where there are fewer."""
        boxes = torch.zeros(max(self.part.max_objects, len(item)), 5)
        boxes[:, 0] = ABSENT
        for line, box in enumerate(item):
            boxes[line] = torch.tensor([self._number(box), *self.fractions(box.corners)])
        return {self.name: boxes}

    def preview(self, item: Sequence[Box]) -> ImageArray:
        """Each box in the colour of its category, which is written in it."""
        image, pen = self.blank()
        for box in item:
            colour = colour_of(self._number(box))
            pen.rectangle(box.corners, outline=colour, width=2)
            pen.text((box.left + 4, box.top + 3), printable(box.category, 60), fill=colour)
        return np.asarray(image)

    def _number(self, box: Box) -> int:
        return self.part.category_names.index(box.category)
