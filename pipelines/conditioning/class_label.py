"""`class`: one class an image, from its folder or from lines of an annotation file."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ops.config import ConfigError
from ops.text import printable
from ops.views import View
from pipelines.conditioning.conditioning import CONDITIONINGS, Conditioning
from pipelines.inputs import Lines, read_lines
from pipelines.store import CodeStore
from pipelines.tracks import AnnotationTrack, Numbers, Track
from prior.conditions import ClassLabel, Condition


class ClassParser:
    """Classes of {"file", "class": name or number}; an image has one."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}

    def __call__(self, line: dict[str, Any]) -> str | None:
        """The class of a line, None where it has none; ValueError where it cannot be used."""
        name = line.get("class")
        if name is None or name == "":
            return None
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f"class {reprlib.repr(name)} is no name")
        first = self._classes.setdefault(line["file"], str(name))
        if first != str(name):
            raise ValueError(
                f"class {printable(name, 80)}, where an earlier line of this file says "
                f"{printable(first, 80)}"
            )
        return first


class ClassTrack(AnnotationTrack):
    """Rows (1, 1): the number of the image's class; nan where it has none."""

    def read(self) -> Lines:
        return read_lines(self.path, ClassParser())

    def meaning(self) -> dict[str, Any]:
        found = {name for items in self.lines.found.values() for name in items}
        self._classes = self.numbered("classes", found)
        return {"row_shape": [1, 1], "classes": self._classes}

    def row(self, items: Sequence[str], size: tuple[int, int], view: View) -> Numbers:
        return np.array([[self._classes.index(items[0]) if items else np.nan]])


@CONDITIONINGS.register("class")
class ClassConditioning(Conditioning):
    """Training reads the store's labels, sampling the flag --labels."""

    name: ClassVar[str] = "class"
    track: ClassVar[type[Track] | None] = ClassTrack
    not_by_file: ClassVar[str] = "Classes are given by --labels, not by --condition."

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        if not label_names:
            raise ConfigError(
                f"{stores[0].path} has no classes. Encode again with --labels first, "
                "or train with --conditions sos."
            )
        return ClassLabel(num_classes=len(label_names), label_names=tuple(label_names))
