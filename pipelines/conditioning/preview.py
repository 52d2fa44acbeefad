"""What samples are told, as pictures to look at beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ops.colours import class_colours
from ops.config import Registry
from ops.images import ImageArray
from pipelines.conditioning.encode import ConditionEncoder, points_of
from pipelines.conditioning.inputs import HALF
from pipelines.inputs import Box, Entry, Pose
from prior.conditions import Boxes, Keypoints

WHITE = 255
Drawer = Callable[[ConditionEncoder, str, Any], ImageArray]
#: Name of a condition -> the picture, uint8 (height, width, 3), of what one item tells.
DRAWERS: Registry[Drawer] = Registry("condition")


def condition_picture(condition_encoder: ConditionEncoder, name: str, sample: int) -> ImageArray:
    """What a sample is told by one condition, uint8 (height, width, 3)."""
    return DRAWERS[name](condition_encoder, name, condition_encoder.item(name, sample))


@DRAWERS.register("segmentation")
@DRAWERS.register("depth")
def draw_grid(condition_encoder: ConditionEncoder, name: str, item: Entry) -> ImageArray:
    tokenizer = condition_encoder.tokenizers[name]
    modality = tokenizer.modality
    raster = condition_encoder.raster(tokenizer, item)
    return np.asarray(modality.images(modality.samples(np.stack([raster])))[0])


@DRAWERS.register("low_res")
def draw_low_res(condition_encoder: ConditionEncoder, name: str, item: Entry) -> ImageArray:
    return condition_encoder.coarse(item)


@DRAWERS.register(HALF)
def draw_half(condition_encoder: ConditionEncoder, name: str, item: Entry) -> ImageArray:
    image = condition_encoder.raster(condition_encoder.tokenizer, item).copy()
    image[condition_encoder.half_height :] = WHITE
    return image


@DRAWERS.register("inpaint")
def draw_inpaint(condition_encoder: ConditionEncoder, name: str, item: Entry) -> ImageArray:
    masked = condition_encoder.masked(item)
    return np.where(masked.known[..., None], masked.image, np.uint8(WHITE))


@DRAWERS.register("boxes")
def draw_boxes(condition_encoder: ConditionEncoder, name: str, item: Sequence[Box]) -> ImageArray:
    """Each box in the colour of its category, which is written in it."""
    picture, pen = _blank(condition_encoder)
    part = condition_encoder.parts[name]
    assert isinstance(part, Boxes)
    for box in item:
        colour = _colour(part.category_names.index(box.category))
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        pen.rectangle(corners, outline=colour, width=2)
        pen.text((box.left + 4, box.top + 3), box.category, fill=colour)
    return np.asarray(picture)


@DRAWERS.register("keypoints")
def draw_keypoints(
    condition_encoder: ConditionEncoder, name: str, item: Sequence[Pose]
) -> ImageArray:
    """A dot for each point."""
    picture, pen = _blank(condition_encoder)
    part = condition_encoder.parts[name]
    assert isinstance(part, Keypoints)
    found = [point for point in points_of(part, item) if point is not None]
    radius = max(2, min(condition_encoder.size) // 64)
    for number, (x, y) in enumerate(found):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(number))
    return np.asarray(picture)


def _blank(condition_encoder: ConditionEncoder) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    height, width = condition_encoder.size
    picture = Image.new("RGB", (width, height), "white")
    return picture, ImageDraw.Draw(picture)


def _colour(number: int) -> tuple[int, ...]:
    return tuple(class_colours(np.array([number]))[0].tolist())
