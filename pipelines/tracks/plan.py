"""The plan of a further track: row for row that of the images, with each one's partner in place.

Unlike the images' it may be written anew, for rows cannot move: a partner that came later, or
changed, is done by opening its task again. First the task's index part goes, then the plan says
what is new, then the task is encoded like any other; a kill in between is made good by doing the
same again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ops import disk
from ops.files import fsync_path
from pipelines.encoding import NO_IMAGE, NO_PARTNER, SEVERAL_PARTNERS
from pipelines.planning import PLAN_SCHEMA, Plan, Task, read_plan, task_table, write_part
from pipelines.store import (
    TRACKS,
    StoreAttributes,
    StoreError,
    committed_tasks,
    forget,
    index_path,
    plan_path,
    read_part,
    remove_partial_shards,
    staging_path,
    track_path,
)

#: From some planned rows of images, columns PARTNER of as many: what belongs to each.
FindPartners = Callable[[pa.Table], pa.Table]
PARTNER = ("uri", "offset", "size", "etag")
PARTNER_SCHEMA = pa.schema([PLAN_SCHEMA.field(name) for name in PARTNER])
WITHOUT = pa.array([NO_PARTNER, SEVERAL_PARTNERS])


def align_plan(
    root: Path,
    images: Plan,
    track_dir: Path,
    provenance: dict[str, Any],
    partners: FindPartners,
    retried: Collection[tuple[str, int]] = (),
) -> Plan:
    """Bring the plan of a track up to that of the store's `images`; the plan that results.

    A row keeps the partner that it has while that one's etag is the same, and also where it is
    gone. Tasks whose rows have others now, and the `retried` ones (grid, number), are opened
    again.
    """
    settings = replace(images.settings, track=provenance)
    older = read_plan(track_dir)
    for part, group in groupby(images.tasks, key=lambda task: task.part):
        tasks = list(group)
        if older is None or part >= older.num_parts:
            tables = (_aligned(task_table(root, task), None, partners) for task in tasks)
            write_part(track_dir, part, settings, images.label_names, tasks, tables)
            continue
        changed = [task for task in tasks if _differs(root, track_dir, task, partners)]
        outdated = part == older.num_parts - 1 and older.settings != settings
        reopen(track_dir, part, [*changed, *(t for t in tasks if (t.grid, t.number) in retried)])
        if changed or outdated:
            forget(track_dir, [plan_path(track_dir, part)])
            kept = (task_table(track_dir, task) for task in tasks)
            tables = (
                _aligned(task_table(root, task), old, partners)
                for task, old in zip(tasks, kept, strict=True)
            )
            write_part(track_dir, part, settings, images.label_names, tasks, tables, overwrite=True)
    plan = read_plan(track_dir)
    assert plan is not None  # the images' has a part at least
    return plan


def _differs(root: Path, track_dir: Path, task: Task, partners: FindPartners) -> bool:
    old = task_table(track_dir, task)
    return not _aligned(task_table(root, task), old, partners).equals(old)


def _aligned(images: pa.Table, older: pa.Table | None, partners: FindPartners) -> pa.Table:
    """A task's rows, PLAN_SCHEMA: the images' with the partners' columns."""
    found = partners(images)
    if older is not None:
        gone = pc.and_(
            pc.is_in(found["etag"], value_set=WITHOUT),
            pc.invert(pc.is_in(older["etag"], value_set=WITHOUT)),
        )
        kept = pc.or_(pc.equal(found["etag"], older["etag"]), gone)
        columns = [pc.if_else(kept, older[name], found[name]) for name in PARTNER]
        found = pa.table(dict(zip(PARTNER, columns, strict=True)))
    for name in PARTNER:
        images = images.set_column(images.schema.get_field_index(name), name, found[name])
    return images.cast(PLAN_SCHEMA)


def reopen(track_dir: Path, part: int, tasks: Sequence[Task]) -> None:
    """Have a track forget what has been made of some tasks, so that they are done anew."""
    if not tasks:
        return
    parts = [index_path(track_dir, task.grid, task.number) for task in tasks]
    forget(track_dir, [*parts, plan_path(track_dir, part)])
    for task, path in zip(tasks, parts, strict=True):
        remove_partial_shards(track_dir, task.grid, task.number)
        disk.disk.unlink(path)
    # All of it must be gone for good before the plan says otherwise.
    for folder in {staging_path(track_dir), *(path.parent for path in parts)}:
        if folder.is_dir():
            fsync_path(folder)


def check_as_planned(track_dir: Path, tasks: Sequence[Task]) -> None:
    """Raises StoreError where one of these committed tasks is not what is planned now; such a one
    is opened again.

    A worker that outlived its driver may have committed rows of an older plan.
    """
    for task in tasks:
        part = index_path(track_dir, task.grid, task.number)
        made = read_part(track_dir, task.grid, task.number)[0]
        if made["source"].to_pylist() != task_table(track_dir, task)["uri"].to_pylist():
            reopen(track_dir, task.part, [task])
            raise StoreError(
                f"{part} was written by a worker of an earlier run. It is removed: run the same "
                "command again."
            )


def failed_tasks(track_dir: Path) -> set[tuple[str, int]]:
    """(grid, number) of the committed tasks in which a partner that is there gave no row."""
    known = pa.array([NO_PARTNER, SEVERAL_PARTNERS, NO_IMAGE, "ok"])
    found = set()
    for grid, number in committed_tasks(track_dir):
        statuses = read_part(track_dir, grid, number)[0]["status"]
        if not pc.all(pc.is_in(statuses, value_set=known)).as_py():
            found.add((grid, number))
    return found


def kept_tracks(root: Path) -> list[str]:
    """The names of the further tracks that a store has begun, in order."""
    folders = (root / TRACKS).glob("*/_plan/0.parquet")
    return sorted(path.parent.parent.name for path in folders)


def store_attributes(root: Path, images: Plan) -> StoreAttributes:
    """What a store's metadata must say, of all its tracks."""
    tracks = dict(images.attributes.tracks)
    for name in kept_tracks(root):
        plan = read_plan(track_path(root, name))
        if plan is not None:
            tracks[name] = plan.settings.track
    return replace(images.attributes, tracks=tracks)
