"""What samples are told, as pictures to look at beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ops.colours import class_colours
from ops.config import Registry
from ops.images import ImageArray
from pipelines.inputs.annotations import Box, Figure
from pipelines.inputs.reading import Entry
from pipelines.conditioning.encode import Teller, points_of
from pipelines.conditioning.inputs import HALF
from prior.conditions import Boxes, Keypoints

WHITE = 255
Drawer = Callable[[Teller, str, Any], ImageArray]
#: Name of a condition -> the picture, uint8 (height, width, 3), of what one item tells.
DRAWERS: Registry[Drawer] = Registry("condition")


def told_picture(teller: Teller, name: str, sample: int) -> ImageArray:
    """What a sample is told by one condition, uint8 (height, width, 3)."""
    return DRAWERS[name](teller, name, teller.item(name, sample))


@DRAWERS.register("segmentation")
@DRAWERS.register("depth")
def draw_grid(teller: Teller, name: str, item: Entry) -> ImageArray:
    tokenizer = teller.tokenizers[name]
    content = tokenizer.content
    raster = teller.raster(tokenizer, item)
    return np.asarray(content.pictures(content.samples(np.stack([raster])))[0])


@DRAWERS.register("low_res")
def draw_low_res(teller: Teller, name: str, item: Entry) -> ImageArray:
    return teller.coarse(item)


@DRAWERS.register(HALF)
def draw_half(teller: Teller, name: str, item: Entry) -> ImageArray:
    image = teller.raster(teller.tokenizer, item).copy()
    image[teller.half_height :] = WHITE
    return image


@DRAWERS.register("inpaint")
def draw_inpaint(teller: Teller, name: str, item: Entry) -> ImageArray:
    masked = teller.masked(item)
    return np.where(masked.known[..., None], masked.image, np.uint8(WHITE))


@DRAWERS.register("boxes")
def draw_boxes(teller: Teller, name: str, item: Sequence[Box]) -> ImageArray:
    """Each box in the colour of its category, which is written in it."""
    picture, pen = _blank(teller)
    part = teller.parts[name]
    assert isinstance(part, Boxes)
    for box in item:
        colour = _colour(part.category_names.index(box.category))
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        pen.rectangle(corners, outline=colour, width=2)
        pen.text((box.left + 4, box.top + 3), box.category, fill=colour)
    return np.asarray(picture)


@DRAWERS.register("keypoints")
def draw_keypoints(teller: Teller, name: str, item: Sequence[Figure]) -> ImageArray:
    """A dot for each point."""
    picture, pen = _blank(teller)
    part = teller.parts[name]
    assert isinstance(part, Keypoints)
    found = [point for point in points_of(part, item) if point is not None]
    radius = max(2, min(teller.size) // 64)
    for number, (x, y) in enumerate(found):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(number))
    return np.asarray(picture)


def _blank(teller: Teller) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    height, width = teller.size
    picture = Image.new("RGB", (width, height), "white")
    return picture, ImageDraw.Draw(picture)


def _colour(number: int) -> tuple[int, ...]:
    return tuple(class_colours(np.array([number]))[0].tolist())
