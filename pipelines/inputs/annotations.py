"""Boxes, keypoints and classes as JSONL or CSV: a line each, naming its image's file.

A line that names its file and nothing else says that there is none: such an image has a row, an
image without any line has not.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipelines.inputs.listing import InputError

T = TypeVar("T")
Point = tuple[float, float]


class Box(NamedTuple):
    """An object, in pixels of the upright picture."""

    category: str
    left: float
    top: float
    width: float
    height: float


#: Points of a figure by name, or by number as text; None where one is not known.
Pose = dict[str, Point | None]


@dataclass
class Lines:
    """What a file says, by the file's name of each picture, in the order of its lines."""

    found: dict[str, list[Any]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (where, why) of unusable lines


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T | None]) -> Lines:
    """The file's lines by picture; `parse` gives None for a picture that has nothing.

    It raises ValueError for a line that cannot be used: that one is listed. Raises InputError
    where the file is missing, or none of its lines can be used.
    """
    lines = Lines()
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            table = csv.DictReader(file) if path.suffix.lower() == ".csv" else None
            lines_of: Iterable[str | dict[Any, Any]] = file if table is None else table
            for number, line in enumerate(lines_of, 1):
                if isinstance(line, str) and not line.strip():
                    continue
                try:
                    name, item = _parsed(line, parse)
                except ValueError as error:
                    where = number if table is None else table.line_num
                    lines.bad.append((f"{path.name}:{where}", str(error)))
                    continue
                held = lines.found.setdefault(name, [])
                if item is not None:
                    held.append(item)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Name a JSONL file.") from None
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file: {error}.") from None
    if not lines.found:
        first = "".join(f" {where}: {why}." for where, why in lines.bad[:1])
        raise InputError(f"{path}: none of its lines can be used.{first}")
    return lines


def _parsed(
    line: str | dict[Any, Any], parse: Callable[[dict[str, Any]], T | None]
) -> tuple[str, T | None]:
    try:
        line = json.loads(line) if isinstance(line, str) else line
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(line, dict) or not isinstance(line.get("file"), str) or not line["file"]:
        raise ValueError('no object with a "file"')
    return line["file"], parse(line)


def parse_box(line: dict[str, Any]) -> Box | None:
    """A box of {"file", "category", "bbox": [x, y, width, height]}; ValueError for another line."""
    if line.get("bbox") is None:
        return None
    box, category = line["bbox"], line.get("category")
    if not isinstance(category, str) or not category:
        raise ValueError('no "category"')
    if not _numbers(box, 4):
        raise ValueError(f"bbox {box!r} is not [x, y, width, height]")
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"bbox {box!r} has no area")
    return Box(category, *map(float, box))


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
            raise ValueError(f"class {name!r} is no name")
        first = self._classes.setdefault(line["file"], str(name))
        if first != str(name):
            raise ValueError(f"class {name}, where an earlier line of this file says {first}")
        return first


class PoseParser:
    """Figures of {"file", "keypoints": [[x, y, visible], ...] or {name: [x, y], ...}}; a point may
    be null, or its visible 0.

    All lines have the same number of points, or names among `names`; without these the first list
    decides, or all names that occur.
    """

    def __init__(self, names: Sequence[str] | None = None, count: int | None = None) -> None:
        self._known, self.count = names, count
        self.names: set[str] = set(names or ())

    def __call__(self, line: dict[str, Any]) -> Pose | None:
        """The figure of a line, None where it has none; ValueError where it cannot be used."""
        points = line.get("keypoints")
        if points is None:
            return None
        if isinstance(points, dict):
            return self._named(points)
        if not isinstance(points, list) or not points:
            raise ValueError("keypoints are no list of [x, y, visible], nor named [x, y]")
        if self.names:
            raise ValueError("a list of keypoints, where others are named")
        if len(points) != (self.count or len(points)):
            raise ValueError(f"{len(points)} keypoints, where others have {self.count}")
        pose = {str(place): _point(point) for place, point in enumerate(points)}
        self.count = len(points)
        return pose

    def _named(self, points: dict[str, Any]) -> Pose:
        if self.count is not None and not self.names:
            raise ValueError("named keypoints, where others are a list")
        unknown = sorted(points.keys() - set(self._known)) if self._known else []
        if unknown:
            raise ValueError(f"a keypoint {unknown[0]!r}, which the store does not have")
        pose = {name: _point(point) for name, point in points.items()}
        self.names |= points.keys()
        return pose


def _point(point: Any) -> Point | None:
    if point is None:
        return None
    if not (_numbers(point, 2) or _numbers(point, 3)):
        raise ValueError(f"keypoint {point!r} is not [x, y] or [x, y, visible]")
    return (float(point[0]), float(point[1])) if len(point) == 2 or point[2] > 0 else None


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        and all(abs(v) < 1e9 and math.isfinite(v) for v in values)
    )
