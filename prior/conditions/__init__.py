"""What a prior is told before the first code: nothing, a class, a grid, boxes, ... as tokens."""

from prior.conditions.contract import CONDITIONS, Condition, Shape
from prior.conditions.geometry import Boxes, Keypoints
from prior.conditions.grids import (
    CodeGrid,
    Coordinates,
    Depth,
    Inpaint,
    LowResolution,
    Segmentation,
)
from prior.conditions.joined import Conditions
from prior.conditions.labels import ClassLabel, StartOfSequence

__all__ = [
    "CONDITIONS",
    "Boxes",
    "ClassLabel",
    "CodeGrid",
    "Condition",
    "Conditions",
    "Coordinates",
    "Depth",
    "Inpaint",
    "Keypoints",
    "LowResolution",
    "Segmentation",
    "Shape",
    "StartOfSequence",
]
