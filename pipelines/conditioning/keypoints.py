"""`keypoints`: the points of a pose, from lines of an annotation file."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ops.config import ConfigError
from ops.images import ImageArray
from ops.views import View
from pipelines.conditioning.annotations import AnnotationConditioning, colour_of
from pipelines.conditioning.conditioning import CONDITIONINGS, track_provenance
from pipelines.conditioning.files import ConditionFiles, annotation_lines
from pipelines.inputs import Lines, are_numbers, read_lines
from pipelines.store import CodeStore
from pipelines.tracks import AnnotationTrack, Numbers, Track, points_in_view
from prior.conditions import Condition, Keypoints

Point = tuple[float, float]
#: Points of one pose by name, or by number as text; None where one is not known.
Pose = dict[str, Point | None]


class PoseParser:
    """Poses of {"file", "keypoints": [[x, y, visible], ...] or {name: [x, y], ...}}; a point may
    be null, or its visible 0.

    All lines have the same number of points, or names among `names`; without these the first list
    decides, or all names that occur.
    """

    def __init__(self, names: Sequence[str] | None = None, count: int | None = None) -> None:
        self._known, self.count = names, count
        self.names: set[str] = set(names or ())

    def __call__(self, line: dict[str, Any]) -> Pose | None:
        """The pose of a line, None where it has none; ValueError where it cannot be used."""
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
            raise ValueError(
                f"a keypoint {reprlib.repr(unknown[0])}, which the store does not have"
            )
        pose = {name: _point(point) for name, point in points.items()}
        self.names |= points.keys()
        return pose


def _point(point: Any) -> Point | None:
    if point is None:
        return None
    if not (are_numbers(point, 2) or are_numbers(point, 3)):
        raise ValueError(f"keypoint {reprlib.repr(point)} is not [x, y] or [x, y, visible]")
    return (float(point[0]), float(point[1])) if len(point) == 2 or point[2] > 0 else None


class KeypointsTrack(AnnotationTrack):
    """Rows (P, 2): x and y of each point of the largest pose of the image in fractions of the
    view, beyond 0 .. 1 where that does not show it; nan where there is none."""

    def read(self) -> Lines:
        names = self.older["names"] if self.older else None
        self._pose_parser = PoseParser(names, self.older["row_shape"][0] if self.older else None)
        return read_lines(self.path, self._pose_parser)

    def meaning(self) -> dict[str, Any]:
        count = len(self._pose_parser.names) or self._pose_parser.count
        if count is None:
            raise ConfigError(
                f"{self.path}: no line has keypoints, so the number of points is not known."
            )
        names = sorted(self._pose_parser.names) or None
        self._order = names or [str(place) for place in range(count)]
        return {"row_shape": [count, 2], "names": names}

    def row(self, items: Sequence[Pose], size: tuple[int, int], view: View) -> Numbers:
        unknown = (float("nan"), float("nan"))
        poses = [np.array([pose.get(name) or unknown for name in self._order]) for pose in items]
        nothing = np.full((len(self._order), 2), np.nan)
        return points_in_view(max([nothing, *poses], key=_extent), size, view)


def _extent(points: Numbers) -> float:
    """The area of the rectangle around a pose; -1 where it has no known point."""
    known = points[~np.isnan(points).any(1)]
    return float(np.prod(np.ptp(known, axis=0))) if len(known) else -1.0


@CONDITIONINGS.register("keypoints")
class KeypointsConditioning(AnnotationConditioning[Keypoints, Pose]):
    """Each item is the poses of one image, of which the first is taken."""

    name: ClassVar[str] = "keypoints"
    track: ClassVar[type[Track] | None] = KeypointsTrack

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        made = track_provenance(stores, cls.name)
        names = tuple(made["names"] or ())
        return Keypoints(num_points=made["row_shape"][0], point_names=names)

    @classmethod
    def parse(cls, path: Path, part: Keypoints) -> ConditionFiles:
        names = part.point_names
        parse = PoseParser(names or None, None if names else part.num_points)
        return annotation_lines(cls.name, path, parse)

    def encode(self, item: Sequence[Pose]) -> dict[str, Tensor]:
        """Points (num_points, 2) in fractions of the canvas; nan for none."""
        points = torch.full((self.part.num_points, 2), torch.nan)
        for place, point in enumerate(self._points(item)):
            if point is not None:
                points[place] = torch.tensor(self.fractions(point))
        return {self.name: points}

    def preview(self, item: Sequence[Pose]) -> ImageArray:
        """A dot for each point."""
        image, pen = self.blank()
        radius = max(2, min(self.size) // 64)
        found = [point for point in self._points(item) if point is not None]
        for number, (x, y) in enumerate(found):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour_of(number))
        return np.asarray(image)

    def _points(self, item: Sequence[Pose]) -> list[Point | None]:
        """The points of the first pose, in pixels, in the prior's order."""
        pose = item[0] if item else {}
        names = self.part.point_names or map(str, range(self.part.num_points))
        return [pose.get(name) for name in names]
