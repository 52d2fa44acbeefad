"""The conditions of a prior: what it is given in addition to the codes, as tokens.

One file a condition (or a close family): its tokens, its null token, the entries of a batch that
it reads, and how a window is cut from them. Batches of entries come in, tokens (B, T) for the
models go out; nothing here reads pixels or files. Read condition.py first, then a condition such
as class_label.py, then joined.py, which makes one sequence of several. A module here that
registers a class in CONDITIONS is a condition: nothing else needs to name it.
"""

import importlib
import pkgutil

from prior.conditions.boxes import Boxes
from prior.conditions.class_label import ClassLabel
from prior.conditions.code_grids import CodeGrid, Depth, Segmentation
from prior.conditions.condition import CONDITIONS, Condition, Shape
from prior.conditions.coordinates import Coordinates
from prior.conditions.frames import GRID, Entry
from prior.conditions.inpaint import Inpaint
from prior.conditions.inputs import ConditionInputs, Prefix, canvas_tokens, window_prefix
from prior.conditions.joined import Conditions
from prior.conditions.keypoints import Keypoints
from prior.conditions.low_res import LowResolution
from prior.conditions.sos import StartOfSequence

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

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
    "Entry",
    "GRID",
    "Inpaint",
    "Keypoints",
    "LowResolution",
    "Prefix",
    "Segmentation",
    "Shape",
    "StartOfSequence",
    "canvas_tokens",
    "window_prefix",
]
