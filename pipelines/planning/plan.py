"""The frozen plan of a store: which row each image gets, and which rows make a task.

A plan grows by parts of at most PART_ROWS rows, and written parts never change. Task k of a grid
owns the rows [k * rows_per_task, (k + 1) * rows_per_task): images added later start new tasks, and
the rows that the last task before them did not fill stay empty. A part is a Parquet file with one
row group a task. An image's views are consecutive rows.
"""

from __future__ import annotations

import errno
import functools
import io
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops import disk
from ops.config import ConfigError, from_json, to_json
from ops.files import fsync_path, link_once, make_folders
from ops.paths import AnyPath, ObjectPath, create_once, file_info, write_whole
from pipelines.planning.diff import addresses, new_entries, without_tombstones
from pipelines.planning.rows import PLAN_SCHEMA, corrupt_plan, planned_rows
from pipelines.store import (
    MAX_ROWS_PER_TASK,
    StoreAttributes,
    StoreError,
    check_grids,
    check_range,
    checked_table,
    description_metadata,
    num_parts,
    open_parquet,
    plan_path,
    read_description,
    track_name,
    write_tombstones,
)

IntArray = np.ndarray[Any, np.dtype[np.int64]]
#: From the new images and the whole listing, the images to plan.
Select = Callable[[pa.Table, pa.Table], pa.Table]
#: Columns that a row has from its entry.
ENTRY_COLUMNS = ("key", "uri", "offset", "size", "etag", "caption", "carried")
PART_ROWS = 10_000_000  # of a part, unless a single task or the views of an image need more
MAX_TASKS = 10**9 - 1  # of a grid: names of files have at most nine digits


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The settings a store was created with; every later run must use the same.

    Codes depend on everything in `track` but its name: batch_size, threads and device change the
    last bits of float32 arithmetic. Raises ConfigError for values that no store has.
    """

    rows_per_task: int
    track: dict[str, Any]  # the provenance of the track, transform and all
    labels: str = "none"  # where the classes come from: pipelines.inputs.listing.LABELS
    compress: bool = False  # smaller shards, which cannot be memory-mapped

    def __post_init__(self) -> None:
        check_range("rows_per_task", self.rows_per_task, 1, MAX_ROWS_PER_TASK)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One unit of work: the rows of one shard."""

    grid: str
    number: int
    num_rows: int
    part: int  # the plan part that lists the rows
    group: int  # the row group of that part


@dataclass(frozen=True)
class Plan:
    """A store's plan: all parts written so far."""

    settings: PlanSettings
    label_names: tuple[str, ...]
    tasks: tuple[Task, ...]  # in planned order
    num_parts: int
    track: str = "image"  # the track it plans

    @property
    def num_rows(self) -> int:
        return sum(task.num_rows for task in self.tasks)

    @property
    def grids(self) -> dict[str, int]:
        """Grid name -> length of its array: the last planned row plus one."""
        rows: dict[str, int] = {}
        for task in self.tasks:
            end = task.number * self.settings.rows_per_task + task.num_rows
            rows[task.grid] = max(rows.get(task.grid, 0), end)
        return dict(sorted(rows.items()))

    @property
    def attributes(self) -> StoreAttributes:
        """The store's metadata, with this track alone."""
        return StoreAttributes(
            rows_per_task=self.settings.rows_per_task,
            grids=self.grids,
            label_names=self.label_names,
            compress=self.settings.compress,
            tracks={self.track: self.settings.track},
        )


def read_plan(root: AnyPath) -> Plan | None:
    """The plan of the store at `root`; None if nothing is planned. Raises StoreError if corrupt."""
    tasks: list[Task] = []
    plan = None
    for part in range(num_parts(plan_path(root, 0).parent)):
        with corrupt_plan(plan_path(root, part)):
            settings, names, found = _read_part(root, part)
            tasks += found
            plan = Plan(settings, names, tuple(tasks), part + 1, track_name(root))
    if plan is not None:
        with corrupt_plan(plan_path(root, 0).parent):
            if len({(task.grid, task.number) for task in tasks}) != len(tasks):
                raise ValueError("it has a task twice")
            _ = plan.attributes  # raises ConfigError where they are none
    return plan


def _read_part(root: AnyPath, part: int) -> tuple[PlanSettings, tuple[str, ...], list[Task]]:
    """Settings, label names and tasks of one part of a plan; ValueError where it has none."""
    path = plan_path(root, part)
    file = open_parquet(path)
    description = read_description(path, file.schema_arrow.metadata)
    settings = from_json(PlanSettings, description["settings"])
    names = tuple(description["label_names"])
    if not all(isinstance(name, str) for name in names):
        raise ConfigError("label_names must be a list of names.")
    tasks = []
    for group, (grid, number, num_rows) in enumerate(description["tasks"]):
        check_grids({grid: num_rows})
        check_range("the number of a task", number, 0, MAX_TASKS)
        check_range("the number of rows of a task", num_rows, 1, settings.rows_per_task)
        if group >= file.num_row_groups or file.metadata.row_group(group).num_rows != num_rows:
            raise ValueError(f"it does not list the rows of task {number} of grid {grid}")
        tasks.append(Task(grid=grid, number=number, num_rows=num_rows, part=part, group=group))
    return settings, names, tasks


def task_table(root: AnyPath, task: Task) -> pa.Table:
    """The planned rows of one task (PLAN_SCHEMA); raises StoreError if the plan is corrupt."""
    path = plan_path(root, task.part)
    with corrupt_plan(path):
        footer = _footer(path, _version(path))
        file = open_parquet(path, footer, task.group)
        return checked_table(file.read_row_group(task.group), PLAN_SCHEMA)


def _version(path: AnyPath) -> str:
    """A text that is another one when the file at `path` was written again."""
    if isinstance(path, ObjectPath):
        found = file_info(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", str(path))
        return found.etag
    status = path.stat()
    return f"{status.st_ino}-{status.st_mtime_ns}"


@functools.lru_cache(maxsize=4)
def _footer(path: AnyPath, version: str) -> Any:
    # The footer lists every row group: reading it for each of them would take quadratic time.
    return open_parquet(path).metadata


def extend_plan(
    root: AnyPath,
    listing: pa.Table,
    settings: PlanSettings,
    views: int,
    grids_of: Callable[[pa.Table], pa.Array],
    *,
    by_content: bool = False,
    retry_failed: bool = False,
    select: Select | None = None,
) -> Plan:
    """Plan the new and changed entries of a listing, `views` rows each; returns the whole plan.

    `listing` is a table of ENTRY_SCHEMA sorted by key. `grids_of` gives the names of the grid
    shapes of some entries; it is called for the entries to plan only. An image has changed if its
    etag has; with `by_content`, if its content hash has, where the index has one for the planned
    row. With `retry_failed`, images with a failed row are planned again. Of what is new, `select`
    chooses what is planned. Raises StoreError if there is nothing to plan.
    """
    plan = read_plan(root)
    num_parts = plan.num_parts if plan else 0
    new = new_entries(root, num_parts, listing, by_content=by_content, retry_failed=retry_failed)
    if select is not None:
        new = select(new, listing)
    if len(new):
        label_names = _more_names(plan.label_names if plan else (), new["label_name"])
        _write_parts(root, plan, settings, label_names, Entries(new, grids_of(new), views))
        plan = read_plan(root)
    if plan is None:
        raise StoreError("There is nothing to plan: every image was left out.")
    return plan


def prune_plan(root: AnyPath, listing: pa.Table) -> int:
    """Add tombstones for every row of the images that the listing lacks; returns how many images.

    An image that is listed again later is planned as a new one.
    """
    plan = read_plan(root)
    keys = listing["key"]
    removed = [
        rows.filter(pc.invert(pc.is_in(rows["key"], value_set=keys)))
        for rows in planned_rows(root, plan.num_parts if plan else 0, ("key", "grid", "row"))
    ]
    if not removed:
        return 0
    rows_to_mark = without_tombstones(root, pa.concat_tables(removed))
    if len(rows_to_mark):
        write_tombstones(root, rows_to_mark)
    return len(rows_to_mark["key"].unique())


def _more_names(names: tuple[str, ...], found: pa.ChunkedArray) -> tuple[str, ...]:
    """The label names with new ones appended, so that no label changes its number."""
    return names + tuple(sorted(set(found.unique().drop_null().to_pylist()) - set(names)))


class Entries:
    """Entries to plan, by grid shape, `views` rows each."""

    def __init__(self, table: pa.Table, grids: pa.Array, views: int) -> None:
        self.views = views
        self._table, self._grids = table, grids
        self._grid, self._of_grid = "", table.slice(0, 0)
        found = pc.value_counts(grids)
        names, counts = (found.field(name).to_pylist() for name in ("values", "counts"))
        #: Grid name -> number of rows, by name.
        self.num_rows = {
            grid: count * views for grid, count in sorted(zip(names, counts, strict=True))
        }

    def of_grid(self, grid: str) -> pa.Table:
        """The entries of a grid, in their order; those of one grid at a time are kept."""
        if len(self.num_rows) == 1:
            return self._table
        if grid != self._grid:
            chosen = self._table.filter(pc.equal(self._grids, grid))
            self._grid, self._of_grid = grid, chosen
        return self._of_grid

    def rows(self, grid: str, first: int, count: int) -> tuple[pa.Table, IntArray]:
        """The entries (count,) of `count` rows of a grid from its row `first` on, and their
        views."""
        lines = np.arange(first, first + count)
        start = first // self.views
        near = self.of_grid(grid).slice(start, lines[-1] // self.views + 1 - start)
        if self.views > 1:
            near = near.combine_chunks().take(pa.array(lines // self.views - start))
        return near, lines % self.views


def _write_parts(
    root: AnyPath,
    plan: Plan | None,
    settings: PlanSettings,
    label_names: tuple[str, ...],
    entries: Entries,
) -> None:
    """Write the entries' rows to new parts, in order: one that is killed after some is continued
    with the same rows in the same tasks."""
    next_task: dict[str, int] = {}
    for task in plan.tasks if plan else ():
        next_task[task.grid] = max(next_task.get(task.grid, 0), task.number + 1)
    first_part, size = plan.num_parts if plan else 0, settings.rows_per_task
    for part, tasks in enumerate(_parts_of(entries, size), first_part):
        numbered = [
            Task(
                grid=grid,
                number=next_task.get(grid, 0) + first // size,
                num_rows=min(size, entries.num_rows[grid] - first),
                part=part,
                group=group,
            )
            for group, (grid, first) in enumerate(tasks)
        ]
        tables = (
            _planned(entries, task, first, size, label_names)
            for task, (_, first) in zip(numbered, tasks, strict=True)
        )
        write_part(root, part, settings, label_names, numbered, tables)


def _parts_of(entries: Entries, rows_per_task: int) -> Iterator[list[tuple[str, int]]]:
    """The tasks of each part, as grid and first row among the entries' rows of that grid.

    A part ends where an image ends: of one that is planned in part, the other views would never be.
    """
    part: list[tuple[str, int]] = []
    whole_images = rows_per_task * entries.views // math.gcd(rows_per_task, entries.views)
    for grid, num_rows in entries.num_rows.items():
        for start in range(0, num_rows, whole_images):
            tasks = range(start, min(start + whole_images, num_rows), rows_per_task)
            if part and (len(part) + len(tasks)) * rows_per_task > PART_ROWS:
                yield part
                part = []
            part += [(grid, first) for first in tasks]
    yield part


def write_part(
    root: AnyPath,
    part: int,
    settings: PlanSettings,
    label_names: tuple[str, ...],
    tasks: Sequence[Task],
    tables: Iterable[pa.Table],
    overwrite: bool = False,
) -> None:
    """Write one part of a plan: its tasks and the rows of each (tables of PLAN_SCHEMA).

    Raises StoreError if the part exists, unless `overwrite` is set.
    """
    description = {
        "settings": to_json(settings),
        "label_names": list(label_names),
        "tasks": [(task.grid, task.number, task.num_rows) for task in tasks],
    }
    schema = PLAN_SCHEMA.with_metadata(description_metadata(description))
    _write_whole(plan_path(root, part), schema, tables, settings.rows_per_task, overwrite)


def _planned(
    entries: Entries, task: Task, first: int, rows_per_task: int, label_names: tuple[str, ...]
) -> pa.Table:
    """The rows of one task (PLAN_SCHEMA), from the entries' row `first` of its grid on."""
    chosen, views = entries.rows(task.grid, first, task.num_rows)
    view = pa.array(views)
    older = chosen.select(["older_grid", "older_row"]).rename_columns(["grid", "row"])
    # An image's views are consecutive rows, those of its older content too.
    older = older.set_column(1, "row", pc.add(older["row"], view))
    names = pa.array(label_names, pa.large_string())
    columns = {name: chosen[name] for name in ENTRY_COLUMNS} | {
        "view": view,
        "label": pc.index_in(chosen["label_name"], value_set=names),
        "grid": pa.repeat(task.grid, task.num_rows),
        "row": pa.array(task.number * rows_per_task + np.arange(task.num_rows)),
        "replaces": addresses(older),
    }
    table = pa.table({field.name: columns[field.name] for field in PLAN_SCHEMA})
    return table.cast(PLAN_SCHEMA)


def _write_whole(
    path: AnyPath, schema: pa.Schema, groups: Iterable[pa.Table], size: int, overwrite: bool
) -> None:
    """Write tables as the row groups of a file, atomically.

    Raises StoreError if the file exists, unless `overwrite` is set.
    """
    options = {"compression": "zstd", "write_page_checksum": True}
    if isinstance(path, ObjectPath):
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, schema, **options) as writer:
            for table in groups:
                writer.write_table(table, row_group_size=size)
        if overwrite:
            write_whole(path, buffer.getvalue())
        elif not create_once(path, buffer.getvalue()):
            raise _written_by_another(path)
        return
    make_folders(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    with disk.disk.create(partial) as file, pq.ParquetWriter(file, schema, **options) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=size)
    fsync_path(partial)
    if overwrite:
        disk.disk.replace(partial, path)
        fsync_path(path.parent)
    elif not link_once(partial, path):
        raise _written_by_another(path)
    # An earlier run may have been killed after it made the folder and before it flushed its name.
    fsync_path(path.parent.parent)


def _written_by_another(path: AnyPath) -> StoreError:
    return StoreError(f"{path} was written by another process. Run the command again.")
