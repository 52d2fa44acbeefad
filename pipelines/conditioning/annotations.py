"""Conditions whose input is lines of an annotation file: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from ops.colours import class_colours
from pipelines.conditioning.conditioning import FileConditioning
from pipelines.conditioning.files import ConditionFiles
from prior.conditions import Condition

Part = TypeVar("Part", bound=Condition)
Annotation = TypeVar("Annotation")  # a parsed line


class AnnotationConditioning(FileConditioning[Part, Sequence[Annotation]]):
    """An item is the parsed lines of one image."""

    @classmethod
    @abstractmethod
    def parse(cls, path: Path, part: Part) -> ConditionFiles:
        """The lines of a JSONL file, by annotation_lines; ConfigError where one cannot be used."""

    def fractions(self, numbers: Sequence[float]) -> list[float]:
        """x, y, x, y ... in pixels of the sample, in fractions of the canvas of whole codes."""
        factor = self.tokenizer.config.downsample_factor
        height, width = (side * factor for side in self.grid)
        return [number / (width, height)[place % 2] for place, number in enumerate(numbers)]

    def blank(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """A white image of the samples' size, and a pen to draw on it."""
        height, width = self.size
        image = Image.new("RGB", (width, height), "white")
        return image, ImageDraw.Draw(image)


def colour_of(number: int) -> tuple[int, ...]:
    """The colour (r, g, b), 0 .. 255, in which previews draw the category of that number."""
    return tuple(class_colours(np.array([number]))[0].tolist())
