"""The plan of a further track: the images' plan, with each row's partner in place of its image.

Unlike the images' plan it may be rewritten, since rows cannot move: a partner that came later, or
changed, is encoded by reopening its task. First the task's index part is removed, then the plan is
rewritten, then the task is encoded like any other; after a kill in between, the next run does the
same again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ops import paths
from ops.paths import AnyPath
from pipelines.encoding import NO_IMAGE, NO_PARTNER, SEVERAL_PARTNERS
from pipelines.planning import PLAN_SCHEMA, Plan, Task, read_plan, task_table, write_part
from pipelines.store import (
    CARRIED_FIELDS,
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

#: From some planned rows of images, as many rows of the columns PARTNER: each one's partner.
FindPartners = Callable[[pa.Table], pa.Table]
PARTNER = ("uri", "offset", "size", "etag")
PARTNER_SCHEMA = pa.schema([PLAN_SCHEMA.field(name) for name in PARTNER])
NOT_ONE = pa.array([NO_PARTNER, SEVERAL_PARTNERS], pa.large_string())


def align_plan(
    root: AnyPath,
    images: Plan,
    track_dir: AnyPath,
    provenance: dict[str, Any],
    partners: FindPartners,
    retried: Collection[tuple[str, int]] = (),
) -> Plan:
    """Extend a track's plan to that of the store's `images`, and return it.

    A row keeps its partner as long as the etag is the same, and also where the partner no longer
    exists. Tasks of which a row has another partner now, and the `retried` ones (grid, number), are
    reopened.
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
    assert plan is not None  # the images' plan has at least one part
    return plan


def _differs(root: AnyPath, track_dir: AnyPath, task: Task, partners: FindPartners) -> bool:
    old = task_table(track_dir, task)
    return not _aligned(task_table(root, task), old, partners).equals(old)


def _aligned(images: pa.Table, older: pa.Table | None, partners: FindPartners) -> pa.Table:
    """A task's rows, PLAN_SCHEMA: the images' rows with the columns of their partners."""
    found = partners(images)
    if older is not None:
        removed = pc.and_(
            pc.is_in(found["etag"], value_set=NOT_ONE),
            pc.invert(pc.is_in(older["etag"], value_set=NOT_ONE)),
        )
        kept = pc.or_(pc.equal(found["etag"], older["etag"]), removed)
        columns = [pc.if_else(kept, older[name], found[name]) for name in PARTNER]
        found = pa.table(dict(zip(PARTNER, columns, strict=True)))
    for name in PARTNER:
        images = images.set_column(images.schema.get_field_index(name), name, found[name])
    for field in CARRIED_FIELDS:  # of the image: its own index has them
        place = images.schema.get_field_index(field.name)
        images = images.set_column(place, field, pa.nulls(len(images), field.type))
    return images.cast(PLAN_SCHEMA)


def reopen(track_dir: AnyPath, part: int, tasks: Sequence[Task]) -> None:
    """Remove what has been committed of some tasks of a track, so that they are encoded again."""
    if not tasks:
        return
    parts = [index_path(track_dir, task.grid, task.number) for task in tasks]
    forget(track_dir, [*parts, plan_path(track_dir, part)])
    for task, path in zip(tasks, parts, strict=True):
        remove_partial_shards(track_dir, task.grid, task.number)
        paths.remove(path)
    # The removals must be durable before the plan is rewritten.
    for folder in {staging_path(track_dir), *(path.parent for path in parts)}:
        if paths.is_folder(folder):
            paths.flush(folder)


def check_as_planned(track_dir: AnyPath, tasks: Sequence[Task]) -> None:
    """Raises StoreError where one of these committed tasks has other partners than planned now,
    and reopens it.

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


def failed_tasks(track_dir: AnyPath) -> set[tuple[str, int]]:
    """(grid, number) of the committed tasks in which a partner could not be encoded."""
    known = pa.array([NO_PARTNER, SEVERAL_PARTNERS, NO_IMAGE, "ok"], pa.large_string())
    found = set()
    for grid, number in committed_tasks(track_dir):
        statuses = read_part(track_dir, grid, number)[0]["status"]
        if not pc.all(pc.is_in(statuses, value_set=known)).as_py():
            found.add((grid, number))
    return found


def kept_tracks(root: AnyPath) -> list[str]:
    """The names of the further tracks that have a plan in a store, sorted.

    Raises StoreError for a name that no track has.
    """
    found = paths.matching(root, f"{TRACKS}/*/_plan/0.parquet")
    return sorted(track_path(root, path.parent.parent.name).name for path in found)


def store_attributes(root: AnyPath, images: Plan) -> StoreAttributes:
    """The metadata of a store with all its tracks."""
    tracks = dict(images.attributes.tracks)
    for name in kept_tracks(root):
        plan = read_plan(track_path(root, name))
        if plan is not None:
            tracks[name] = plan.settings.track
    return replace(images.attributes, tracks=tracks)
