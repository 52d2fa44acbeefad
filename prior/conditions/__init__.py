"""What a prior is told before the first code: nothing, a class, a grid, boxes, ... as tokens."""

from prior.conditions.contract import CONDITIONS, Condition, Shape
from prior.conditions.frames import boxes_in, out_of, points_in
from prior.conditions.geometry import Boxes, Keypoints
from prior.conditions.grids import (
    CodeGrid,
    Coordinates,
    Depth,
    Inpaint,
    LowResolution,
    Segmentation,
)
from prior.conditions.inputs import ConditionInputs, Prefix, canvas_tokens, window_prefix
from prior.conditions.joined import Conditions
from prior.conditions.labels import ClassLabel, StartOfSequence

__all__ = [
    "Boxes",
    "CONDITIONS",
    "ClassLabel",
    "CodeGrid",
    "Condition",
    "ConditionInputs",
    "Conditions",
    "Coordinates",
    "Depth",
    "Inpaint",
    "Keypoints",
    "LowResolution",
    "Prefix",
    "Segmentation",
    "Shape",
    "StartOfSequence",
    "boxes_in",
    "canvas_tokens",
    "out_of",
    "points_in",
    "window_prefix",
]
