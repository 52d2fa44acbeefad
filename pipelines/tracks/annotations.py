"""Tracks of plain numbers, made of the lines of an annotation file.

No tokenizer is needed and a row takes microseconds, so the driver makes them, whatever --workers.
Each condition parses its lines and defines its rows by a subclass: see pipelines/conditioning.
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
from ops.paths import AnyPath
from ops.views import View
from pipelines.encoding import (
    IMAGE_COLUMNS,
    NO_PARTNER,
    SEVERAL_PARTNERS,
    Row,
    check_image,
    check_partner,
)
from pipelines.inputs import FileNames, Lines
from pipelines.jobs import check_absolute
from pipelines.planning import Plan, Task, planned_rows, task_table
from pipelines.store import (
    IndexLine,
    commit_task,
    grid_shape,
    index_buffer,
    index_table,
    read_part,
    row_form,
)
from pipelines.tracks.plan import PARTNER_SCHEMA, FindPartners
from pipelines.tracks.track import Track, TrackInput

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Size = tuple[int, int]  # width, height


class AnnotationTrack(Track):
    """Rows of float32, each made of the lines of one file that name its image."""

    def __init__(self, root: AnyPath, asked: TrackInput) -> None:
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
        """The lines of the file at `path`."""

    @abstractmethod
    def meaning(self) -> dict[str, Any]:
        """The part of the provenance that describes the numbers: `row_shape` and others."""

    @abstractmethod
    def row(self, items: Sequence[Any], size: Size, view: View) -> Numbers:
        """The row (row_shape) of one view of an image of `size` pixels that has these items."""

    def numbered(self, which: str, names: set[str]) -> list[str]:
        """The names that the provenance lists under `which`, new ones last: none changes its
        number."""
        known = list(self.older[which]) if self.older else []
        return [*known, *sorted(names - set(known))]

    def names(self) -> Sequence[str]:
        return list(self.lines.found)

    @property
    def reads(self) -> Mapping[str, AnyPath]:
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

    def make(self, plan: Plan, task: Task) -> None:
        """Make and commit the rows of one task, whose images have been committed."""
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

    def _made(self, row: Row, transform: Transform) -> tuple[IndexLine, Numbers | None]:
        """A row's index line and numbers."""
        try:
            check_image(row)
            check_partner(row)
            name = self._names.of(row["key"]).name
            if name is None or self._etags[name] != row["etag"]:
                raise ImageError("missing", "the file no longer has lines for it")
        except ImageError as error:
            return IndexLine(None, None, error.reason, str(error), None), None
        rows, columns = (side * transform.multiple_of for side in grid_shape(row["grid"]))
        size = (row["image_width"], row["image_height"])
        view = transform.view_of(*size, (rows, columns), row["view"], row["key"])
        numbers = self.row(self.lines.found[name], size, view)
        return IndexLine(*size, "ok", None, row["etag"]), numbers


def points_in_view(points: Numbers, size: Size, view: View) -> Numbers:
    """Points (n, 2), x and y in pixels of an image, in fractions of a view; nan stays nan."""
    corner = np.array([view.left, view.top])
    inside: Numbers = (points / size - corner) / (np.array([view.right, view.bottom]) - corner)
    if view.mirrored:
        inside[:, 0] = 1 - inside[:, 0]
    return inside
