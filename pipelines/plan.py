"""The frozen plan of an encode: which image is which row, and which rows make a task.

A plan grows by parts and is never rewritten. Task k of a grid owns its rows
[k * rows_per_task, (k + 1) * rows_per_task) for ever: images that come later start new tasks, and
what the last task before them left empty stays empty. One row group of a part's file is one task.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ops.config import from_json, to_json
from ops.files import fsync_path
from pipelines.readers import Entry
from pipelines.store.layout import StoreError, plan_path

METADATA_KEY = b"smalti"
PLAN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("grid", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("replaces", pa.string()),  # "grid/row" of the same image's older content
    ]
)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a store was begun with; every later run must ask for the same.

    Codes depend on all of `track` but its name: on the last bits of float32 arithmetic even
    through batch_size, threads and device.
    """

    rows_per_task: int
    track: dict[str, Any]  # the provenance of track `image`, transform and all


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One unit of work: the rows of one shard."""

    grid: str
    number: int
    num_rows: int
    part: int  # which plan part,
    group: int  # and which row group of it, lists the rows


@dataclass(frozen=True)
class Plan:
    """A store's plan as far as it has grown."""

    settings: PlanSettings
    label_names: tuple[str, ...]
    tasks: tuple[Task, ...]  # in planned order
    num_parts: int

    @property
    def num_rows(self) -> int:
        return sum(task.num_rows for task in self.tasks)

    @property
    def grids(self) -> dict[str, int]:
        """Rows of each grid's array: up to the last planned one, gaps between tasks included."""
        rows: dict[str, int] = {}
        for task in self.tasks:
            end = task.number * self.settings.rows_per_task + task.num_rows
            rows[task.grid] = max(rows.get(task.grid, 0), end)
        return dict(sorted(rows.items()))


def read_plan(root: Path) -> Plan | None:
    """The plan of the store at `root`; None where nothing has been planned."""
    tasks: list[Task] = []
    plan = None
    part = 0
    while plan_path(root, part).exists():
        description = _read_description(plan_path(root, part))
        for group, (grid, number, num_rows) in enumerate(description["tasks"]):
            tasks.append(Task(grid=grid, number=number, num_rows=num_rows, part=part, group=group))
        part += 1
        settings = from_json(PlanSettings, description["settings"])
        plan = Plan(settings, tuple(description["label_names"]), tuple(tasks), part)
    return plan


def _read_description(path: Path) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(path).metadata
        description: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged plan ({error}). Restore it from a copy.") from error
    return description


def task_rows(root: Path, task: Task) -> list[dict[str, Any]]:
    """The planned rows of one task, as PLAN_SCHEMA has them."""
    path = plan_path(root, task.part)
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        rows: list[dict[str, Any]] = file.read_row_group(task.group).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path}: damaged plan ({error}). Restore it from a copy.") from error
    return rows


def extend_plan(
    root: Path,
    entries: Sequence[Entry],
    settings: PlanSettings,
    views: int,
    grid_of: Callable[[Entry], str],
) -> Plan:
    """Plan the entries that are new or changed, `views` rows each; the plan that results.

    `grid_of` tells the grid shape an entry's codes will have; it is asked for new entries only.
    """
    plan = read_plan(root)
    known = _newest_rows(root, plan) if plan else {}
    fresh = [entry for entry in entries if known.get(entry.key, ("", {}))[0] != entry.etag]
    if not fresh:
        if plan is None:
            raise StoreError("There is nothing to plan.")
        return plan
    label_names = _more_names(plan.label_names if plan else (), fresh)
    labels = {name: label for label, name in enumerate(label_names)}
    by_grid: dict[str, list[dict[str, Any]]] = {}
    for entry in fresh:
        older = known.get(entry.key, ("", {}))[1]
        for view in range(views):
            line = {
                "key": entry.key,
                "view": view,
                "uri": entry.uri,
                "offset": entry.offset,
                "size": entry.size,
                "etag": entry.etag,
                "label": labels.get(entry.label_name) if entry.label_name else None,
                "replaces": older.get(view),
            }
            by_grid.setdefault(grid_of(entry), []).append(line)
    _write_part(root, plan, settings, label_names, by_grid)
    extended = read_plan(root)
    assert extended is not None
    return extended


def _newest_rows(root: Path, plan: Plan) -> dict[str, tuple[str, dict[int, str]]]:
    """By key: the etag it was last planned with, and its address "grid/row" by view."""
    newest: dict[str, tuple[str, dict[int, str]]] = {}
    for part in range(plan.num_parts):
        columns = ["key", "view", "etag", "grid", "row"]
        table = pq.ParquetFile(plan_path(root, part)).read(columns=columns)
        for key, view, etag, grid, row in zip(
            *(table[c].to_pylist() for c in columns), strict=True
        ):
            if newest.get(key, ("",))[0] != etag:
                newest[key] = (etag, {})
            newest[key][1][view] = f"{grid}/{row}"
    return newest


def _more_names(names: tuple[str, ...], entries: Sequence[Entry]) -> tuple[str, ...]:
    """The label names, new ones behind the old: a label never changes its number."""
    found = {entry.label_name for entry in entries if entry.label_name is not None}
    return names + tuple(sorted(found - set(names)))


def _write_part(
    root: Path,
    plan: Plan | None,
    settings: PlanSettings,
    label_names: tuple[str, ...],
    by_grid: dict[str, list[dict[str, Any]]],
) -> None:
    next_task: dict[str, int] = {}
    for task in plan.tasks if plan else ():
        next_task[task.grid] = max(next_task.get(task.grid, 0), task.number + 1)
    tasks, tables = [], []
    size = settings.rows_per_task
    for grid, lines in sorted(by_grid.items()):
        for first in range(0, len(lines), size):
            number = next_task.get(grid, 0) + first // size
            rows = [
                {**line, "grid": grid, "row": number * size + place}
                for place, line in enumerate(lines[first : first + size])
            ]
            tasks.append((grid, number, len(rows)))
            tables.append(pa.Table.from_pylist(rows, PLAN_SCHEMA))
    description = {
        "settings": to_json(settings),
        "label_names": list(label_names),
        "tasks": tasks,
    }
    schema = PLAN_SCHEMA.with_metadata({METADATA_KEY: json.dumps(description, sort_keys=True)})
    path = plan_path(root, plan.num_parts if plan else 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with pq.ParquetWriter(
            partial, schema, compression="zstd", write_page_checksum=True
        ) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=size)
        fsync_path(partial)
        os.link(partial, path)  # exclusive: a plan, once written, is never replaced
    finally:
        partial.unlink(missing_ok=True)
    fsync_path(path.parent)
    fsync_path(root)
