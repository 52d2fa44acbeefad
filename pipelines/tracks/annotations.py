"""Tracks of plain numbers: objects and the points of figures in each view of an image, its class.

No tokenizer makes them; a row takes microseconds, so the driver does it, whatever --workers says.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ops.config import ConfigError, from_json
from ops.files import json_hash
from ops.images import ImageError, Transform
from ops.views import View
from pipelines.encoding import (
    IMAGE_COLUMNS,
    NO_PARTNER,
    SEVERAL_PARTNERS,
    Row,
    check_image,
    check_partner,
)
from pipelines.inputs import (
    Box,
    ClassParser,
    FileNames,
    Lines,
    Pose,
    PoseParser,
    parse_box,
    read_lines,
)
from pipelines.jobs import check_absolute
from pipelines.planning import Plan, Task, planned_rows, task_table
from pipelines.store import (
    CLASS,
    IndexLine,
    commit_task,
    grid_shape,
    index_buffer,
    index_table,
    read_part,
    row_form,
)
from pipelines.tracks.base import TRACK_KINDS, Input, Track
from pipelines.tracks.plan import PARTNER_SCHEMA, FindPartners

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Size = tuple[int, int]  # width, height

MOST_OBJECTS = 30  # of an image, as the paper has it
ABSENT = -1  # the category of an object that there is not


class GeometryTrack(Track):
    """Rows made of the lines of one file; see geometry_lines for what they say."""

    def __init__(self, root: Path, asked: Input) -> None:
        super().__init__(root, asked)
        if asked.tokenizer is not None:
            raise ConfigError(f"--track {self.name} is kept as plain numbers: name no tokenizer.")
        check_absolute({f"--track {self.name}": Path(asked.value)})
        self.path = Path(asked.value).absolute()
        self.value = str(self.path)
        self.lines = self.read()
        self.bad = self.lines.bad
        self._etags = {name: json_hash(items)[:32] for name, items in self.lines.found.items()}
        self._names = FileNames((), ())

    @abstractmethod
    def read(self) -> Lines:
        """The lines of the file."""

    @abstractmethod
    def meaning(self) -> dict[str, Any]:
        """The part of the provenance that says what the numbers are, `row_shape` among it."""

    @abstractmethod
    def row(self, items: Sequence[Any], size: Size, seen: View) -> Numbers:
        """The row (row_shape) of one view of an image of `size` pixels that has these items."""

    def numbered(self, which: str, names: set[str]) -> list[str]:
        """The names that a provenance lists, new ones behind the old: no name changes its
        number."""
        known = list(self.older[which]) if self.older else []
        return [*known, *sorted(names - set(known))]

    @property
    def reads(self) -> Mapping[str, Path]:
        return {}  # no other process reads it

    def provenance(self, images: dict[str, Any]) -> dict[str, Any]:
        transform = images["transform"]
        return {"kind": self.name, "dtype": "float32", "transform": transform, **self.meaning()}

    def partners(self, images: Plan) -> FindPartners:
        keys: set[str] = set()
        for rows in planned_rows(self.root, images.num_parts, ("key",)):
            keys.update(rows["key"].to_pylist())
        self._names = FileNames(self.lines.found, keys)
        return self._find

    def _find(self, planned: pa.Table) -> pa.Table:
        found: list[tuple[str, None, int, str]] = []
        for key in planned["key"].to_pylist():
            name, unclear = self._names.of(key)
            if name is not None:
                found.append((self.value, None, 0, self._etags[name]))
            else:
                found.append((unclear, None, 0, SEVERAL_PARTNERS if unclear else NO_PARTNER))
        columns = zip(PARTNER_SCHEMA.names, zip(*found, strict=True), strict=True)
        return pa.table({name: list(values) for name, values in columns}, schema=PARTNER_SCHEMA)

    def make(self, plan: Plan, task: Task) -> int:
        """Make and commit one task, whose images have been committed; how many rows failed."""
        settings = plan.settings
        transform = from_json(Transform, settings.track["transform"])
        planned = task_table(self.track_dir, task)
        joined = planned
        image = read_part(self.root, task.grid, task.number)[0]
        for name, asked_as in IMAGE_COLUMNS.items():
            joined = joined.append_column(asked_as, image[name])
        form = row_form(task.grid, settings.track)
        buffer = index_buffer(self.track_dir, task.grid, task.number, task.num_rows, form)
        for place, row in enumerate(joined.to_pylist()):
            buffer.put(place, *self._made(row, transform))
        commit_task(
            self.track_dir,
            task.grid,
            task.number,
            settings.rows_per_task,
            {self.name: buffer.codes},
            index_table(planned, buffer.lines, buffer.codes),
            compress=settings.compress,
        )
        return buffer.num_failed

    def _made(self, row: Row, transform: Transform) -> tuple[IndexLine, Numbers | None]:
        """A row's line and numbers."""
        try:
            check_image(row)
            check_partner(row)
            name = self._names.of(row["key"]).name
            if name is None or self._etags[name] != row["etag"]:
                raise ImageError("missing", "its lines are gone from the file")
        except ImageError as error:
            return IndexLine(None, None, error.reason, str(error), None), None
        rows, columns = (side * transform.multiple_of for side in grid_shape(row["grid"]))
        size = (row["image_width"], row["image_height"])
        seen = transform.view_of(*size, (rows, columns), row["view"], row["key"])
        numbers = self.row(self.lines.found[name], size, seen)
        return IndexLine(*size, "ok", None, row["etag"]), numbers


def _in_view(points: Numbers, size: Size, seen: View) -> Numbers:
    """Points (n, 2), x and y in pixels of an image, in fractions of a view; nan stays."""
    corner = np.array([seen.left, seen.top])
    inside = (points / size - corner) / (np.array([seen.right, seen.bottom]) - corner)
    if seen.mirrored:
        inside[:, 0] = 1 - inside[:, 0]
    return inside


@TRACK_KINDS.register("boxes")
class BoxesTrack(GeometryTrack):
    """Rows (1 + MOST_OBJECTS, 5). The first line is mirrored (0 or 1) and the view's left, top,
    right and bottom in fractions of the upright image. Then each object of which the view shows
    something, the largest of the image first: category, left, top, right and bottom in fractions of
    the view, which may lie outside of it; behind the last ones ABSENT and zeros."""

    def read(self) -> Lines:
        return read_lines(self.path, parse_box)

    def meaning(self) -> dict[str, Any]:
        boxes: list[Box] = [box for items in self.lines.found.values() for box in items]
        self._categories = self.numbered("categories", {box.category for box in boxes})
        return {"row_shape": [1 + MOST_OBJECTS, 5], "categories": self._categories}

    def row(self, items: Sequence[Box], size: Size, seen: View) -> Numbers:
        row = np.zeros((1 + MOST_OBJECTS, 5))
        row[0] = seen
        row[1:, 0] = ABSENT
        largest_first = sorted(items, key=lambda box: -box.width * box.height)
        shown = [line for box in largest_first if (line := self._shown(box, size, seen))]
        for place, line in enumerate(shown[:MOST_OBJECTS], 1):
            row[place] = line
        return row

    def _shown(self, box: Box, size: Size, seen: View) -> tuple[float, ...] | None:
        """A box's line; None where the view shows nothing of it."""
        left, top = box.left, box.top
        corners = np.array([[left, top], [left + box.width, top + box.height]])
        (x0, y0), (x1, y1) = _in_view(corners, size, seen).tolist()
        x0, x1 = min(x0, x1), max(x0, x1)
        if x1 <= 0 or x0 >= 1 or y1 <= 0 or y0 >= 1:
            return None
        return (self._categories.index(box.category), x0, y0, x1, y1)


@TRACK_KINDS.register("keypoints")
class KeypointsTrack(GeometryTrack):
    """Rows (P, 2): x and y of each point of the largest figure of the image in fractions of the
    view, outside of 0 to 1 where that does not show it; nan where there is none."""

    def read(self) -> Lines:
        names = self.older["names"] if self.older else None
        self._pose_parser = PoseParser(names, self.older["row_shape"][0] if self.older else None)
        return read_lines(self.path, self._pose_parser)

    def meaning(self) -> dict[str, Any]:
        count = len(self._pose_parser.names) or self._pose_parser.count
        if count is None:
            raise ConfigError(
                f"{self.path}: no line has keypoints, so how many a figure has is not known."
            )
        names = sorted(self._pose_parser.names) or None
        self._order = names or [str(place) for place in range(count)]
        return {"row_shape": [count, 2], "names": names}

    def row(self, items: Sequence[Pose], size: Size, seen: View) -> Numbers:
        unknown = (float("nan"), float("nan"))
        poses = [np.array([pose.get(name) or unknown for name in self._order]) for pose in items]
        nothing = np.full((len(self._order), 2), np.nan)
        return _in_view(max([nothing, *poses], key=_extent), size, seen)


@TRACK_KINDS.register(CLASS)
class ClassTrack(GeometryTrack):
    """Rows (1, 1): the number of the image's class; nan where it has none."""

    def read(self) -> Lines:
        return read_lines(self.path, ClassParser())

    def meaning(self) -> dict[str, Any]:
        found = {name for items in self.lines.found.values() for name in items}
        self._classes = self.numbered("classes", found)
        return {"row_shape": [1, 1], "classes": self._classes}

    def row(self, items: Sequence[str], size: Size, seen: View) -> Numbers:
        return np.array([[self._classes.index(items[0]) if items else np.nan]])


def _extent(points: Numbers) -> float:
    """The area that a figure's points span; below zero where it has none."""
    known = points[~np.isnan(points).any(1)]
    return float(np.prod(np.ptp(known, axis=0))) if len(known) else -1.0
