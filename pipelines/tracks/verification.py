"""Verifying a code store: reading all of it again and comparing it with checksums and plan."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops import paths
from ops.config import ConfigError
from ops.files import NotRegularError
from ops.paths import AnyPath, P, below, join
from pipelines.console import progress_bar
from pipelines.planning import Plan, Task, read_plan, task_table
from pipelines.store import (
    TRACKS,
    StoreError,
    check_shard,
    checksums_path,
    committed_tasks,
    index_path,
    links_and_pipes,
    listed_files,
    local_tokenizer,
    metadata_files,
    plan_path,
    read_attributes,
    read_checksums,
    read_environments,
    read_part,
    shard_path,
    staging_path,
    summarise_environments,
    tokenizer_folder,
    track_path,
)
from pipelines.tracks.plan import store_attributes
from tokenizer import load_tokenizer

MAX_THREADS = 8  # each holds one shard in memory
#: Columns that plan and index share: name in the plan -> name in the index.
PLANNED_COLUMNS = {
    **{name: name for name in ("key", "grid", "row", "view", "label", "replaces")},
    **{name: name for name in ("caption", "carried")},
    "uri": "source",
}
#: What to do about a file that no encode can make again, by its folder.
REMEDIES = {
    "_plan": "Restore it from a copy; until then the shards cannot be checked.",
    "_tombstones": "Restore it from a copy.",
    "_tokenizer": "Remove the folder _tokenizer and run encode again with the same tokenizer.",
}


Committed = Set[tuple[str, int]]  # (grid, task)


class Verification(NamedTuple):
    """What reading a whole store again found."""

    problems: list[str]  # each names the file, the rows and the remedy
    contents: str  # how much was checked, in words
    made_with: list[str]  # the rows by the device, precision and versions they were made with


def verify_store(root: AnyPath) -> Verification:
    """Check files against checksums, rows against the index, and the index against the plan.

    Raises StoreError if `root` is not a code store.
    """
    linked = list(links_and_pipes(root))
    if linked:
        return Verification(linked, "a store of which nothing else is checked", [])
    if not any(paths.exists(path) for path in (plan_path(root, 0), checksums_path(root))):
        read_attributes(root)  # raises if this is no code store
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "verify") as threads:
        problems, plan = _check_track(root, threads)
        tracks = _further_tracks(root)
        for name in tracks:
            try:
                problems += _check_track(track_path(root, name), threads)[0]
            except StoreError as error:  # it is no name of a track
                problems.append(f"{error} Remove its folder.")
    contents = f"{plan.num_rows} rows in {len(plan.tasks)} shards" if plan else "a store"
    contents += f", and the tracks {', '.join(tracks)}" if tracks else ""
    made_with = _made_with("image", root)
    for name in tracks:
        made_with += _made_with(name, root / TRACKS / name)
    problems = [_with_remedy(plan, problem) for problem in problems]
    return Verification(problems, contents, made_with)


def _made_with(track: str, root: AnyPath) -> list[str]:
    """What the rows of a track were made with, a line each; nothing where parts are corrupt."""
    try:
        parts = [read_environments(root, *task) for task in sorted(committed_tasks(root))]
    except StoreError:
        return []  # a problem that is reported already
    return [f"{track}: {line}" for line in summarise_environments(parts)]


def _with_remedy(plan: Plan | None, problem: str) -> str:
    """A problem of a generated store with `generate` as the command that repairs it."""
    if plan is not None and "generated" in plan.settings.track:
        problem = problem.replace("If its images are still there, remove", "Remove")
        problem = problem.replace("un encode again", "un generate again")
    return problem


def _further_tracks(root: AnyPath) -> list[str]:
    """Names of the tracks that have a plan or checksums, even if other files are missing."""
    known = ("_plan/0.parquet", "_checksums.json")
    found = [
        below(path, root).split("/")[1]
        for name in known
        for path in paths.matching(root, f"{TRACKS}/*/{name}")
    ]
    return sorted(set(found))


def _check_track(root: AnyPath, threads: ThreadPoolExecutor) -> tuple[list[str], Plan | None]:
    """Every problem of a store's images or a track directory, and the plan if it is intact."""
    problems: list[str] = []
    checksums: Mapping[str, str] = {}
    try:
        checksums = read_checksums(root) or {}
    except StoreError as error:
        problems.append(str(error))
    wrong = _wrong_files(root, checksums, threads)
    problems += [
        f"{root}/{name}: {what}. {REMEDIES[name.split('/')[0]]}"
        for name, what in wrong.items()
        if not name.startswith("_index/")
    ]
    if any(name.startswith("_plan/") for name in wrong):
        return problems, None
    try:
        plan = read_plan(root)
    except StoreError as error:
        return [*problems, str(error)], None
    if plan is None:
        return [*problems, f"{plan_path(root, 0)}: missing. {REMEDIES['_plan']}"], None
    try:
        committed = committed_tasks(root)
    except StoreError as error:
        return [*problems, str(error)], plan
    problems += _problems_of_metadata(root, plan)
    if not any(name.startswith("_tokenizer/") for name in wrong):
        problems += _problems_of_tokenizer(root, plan)
    problems += _problems_of_tasks(root, plan, committed, wrong, threads)
    return problems + _problems_of_completeness(root, plan, committed, checksums), plan


# --- files other than shards


def _at(root: P, name: str) -> P:
    return join(root, *name.split("/"))


def _wrong_files(
    root: AnyPath, checksums: Mapping[str, str], threads: ThreadPoolExecutor
) -> dict[str, str]:
    """Path below the store -> what is wrong, for files that have a checksum and differ from it."""

    def state(name: str) -> str | None:
        try:
            return None if paths.hash_file(_at(root, name)) == checksums[name] else "corrupt"
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except NotRegularError:
            return "not a regular file"

    states = threads.map(state, checksums)
    return {name: what for name, what in zip(checksums, states, strict=True) if what}


def _problems_of_metadata(root: AnyPath, plan: Plan) -> list[str]:
    if plan.track != "image":
        return []  # the metadata is the whole store's
    try:
        attributes = store_attributes(root, plan)
    except (StoreError, ConfigError):
        return []  # a track's plan is corrupt, which checking that track reports
    return [
        f"{root}/{name}: not what the plan says. Run encode again to restore it."
        for name, data in metadata_files(attributes).items()
        if not paths.holds_json(_at(root, name), data)
    ]


def _problems_of_tokenizer(root: AnyPath, plan: Plan) -> list[str]:
    if "fingerprint" not in plan.settings.track:
        return []  # a track of numbers, without tokenizer
    folder = tokenizer_folder(root)
    try:
        with tempfile.TemporaryDirectory(prefix="smalti-") as temporary:
            fingerprint = load_tokenizer(local_tokenizer(root, Path(temporary))).fingerprint
    except Exception as error:  # it has no checksum before a run has finished
        return [f"{folder}: cannot be loaded ({error!r}). {REMEDIES['_tokenizer']}"]
    if fingerprint != plan.settings.track["fingerprint"]:
        return [f"{folder}: not the tokenizer that made the codes. {REMEDIES['_tokenizer']}"]
    return []


def _problems_of_completeness(
    root: AnyPath, plan: Plan, committed: Committed, checksums: Mapping[str, str]
) -> list[str]:
    """What the last run has left to do, if it has not finished."""
    todo = [
        task
        for task in plan.tasks
        if (task.grid, task.number) not in committed and _part_name(task) not in checksums
    ]
    path = checksums_path(root)
    unlisted = sum(below(file, root) not in checksums for file in listed_files(root))
    if todo:
        rows = sum(task.num_rows for task in todo)
        what = f"{root}: {len(todo)} of {len(plan.tasks)} tasks, {rows} rows, are not encoded yet"
    elif not paths.exists(path):
        what = f"{path}: missing"
    elif checksums and unlisted:
        what = f"{path}: {unlisted} files are not in it yet"
    else:
        return []
    return [f"{what}: the run has not finished. Run encode again."]


# --- tasks


def _problems_of_tasks(
    root: AnyPath,
    plan: Plan,
    committed: Committed,
    wrong: Mapping[str, str],
    threads: ThreadPoolExecutor,
) -> list[str]:
    planned = {(task.grid, task.number) for task in plan.tasks}
    problems = [
        f"{index_path(root, grid, number)}: no plan lists this part. Remove it."
        for grid, number in sorted(committed - planned)
    ]
    with progress_bar("shard") as progress:
        bar = progress.add_task("verifying", total=len(plan.tasks), note="")
        for found in threads.map(partial(_problems_of_task, root, plan, wrong), plan.tasks):
            problems += found
            progress.advance(bar)
    return problems


def _part_name(task: Task) -> str:
    return f"_index/{task.grid}/{task.number}.parquet"


def _problems_of_task(root: AnyPath, plan: Plan, wrong: Mapping[str, str], task: Task) -> list[str]:
    part = index_path(root, task.grid, task.number)
    rows, remedy = _rows_and_remedy(root, plan, task)
    what = wrong.get(_part_name(task))
    if what == "missing":
        return [f"{part}: missing, {rows}. Run encode again."]
    if what:
        return [f"{part}: {what}, {rows}. {remedy}"]
    if not paths.exists(part):
        return []  # not encoded yet: see _problems_of_completeness
    try:
        planned = task_table(root, task)
    except StoreError as error:
        return [f"{error} It plans {rows}."]
    try:
        index, shards = read_part(root, task.grid, task.number)
    except StoreError as error:
        return [f"{error} It lists {rows}. {remedy}"]
    tracks = plan.attributes.tracks
    differing = _differing(planned, index)
    if len(differing):
        first = task.number * plan.settings.rows_per_task
        rows = _ranges(first + differing)
        return [f"{part}: not as planned in {rows}. {remedy}"]
    return [
        problem
        for track in tracks
        for problem in _problems_of_shard(root, plan, task, track, index, shards[track])
    ]


def _differing(planned: pa.Table, index: pa.Table) -> np.ndarray[Any, Any]:
    """Positions of the rows in which plan and index differ."""
    length = min(len(planned), len(index))
    differing = np.arange(max(len(planned), len(index))) >= length
    for in_plan, in_index in PLANNED_COLUMNS.items():
        a, b = planned[in_plan].slice(0, length), index[in_index].slice(0, length)
        if not a.equals(b):
            equal = pc.fill_null(pc.equal(a, b), False)
            nulls = pc.and_(pc.is_null(a), pc.is_null(b))
            differing[:length] |= ~pc.or_(equal, nulls).to_numpy()
    return np.flatnonzero(differing)


def _problems_of_shard(
    root: AnyPath, plan: Plan, task: Task, track: str, index: pa.Table, shard: Mapping[str, Any]
) -> list[str]:
    path = shard_path(root, task.grid, track, task.number)
    rows, remedy = _rows_and_remedy(root, plan, task)
    try:
        corruption = check_shard(path, shard["sha256"], index, task.grid, track, plan.attributes)
    except FileNotFoundError:
        if paths.exists(join(staging_path(root), shard["file"])):
            return [f"{path}: not published yet, {rows}. Run encode again."]
        return [f"{path}: missing, {rows}. {remedy}"]
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror}), {rows}. {remedy}"]
    except NotRegularError:
        return [f"{path}: not a regular file, {rows}. Remove it. {remedy}"]
    if corruption.rows.any():
        corrupt = index["row"].filter(pa.array(corruption.rows)).to_pylist()
        return [f"{path}: corrupt in {_ranges(corrupt)}. {remedy}"]
    if corruption.file:
        where = "in the part that plain zarr reads to locate them"
        return [f"{path}: corrupt outside its {rows}, {where}. {remedy}"]
    return []


def _rows_and_remedy(root: AnyPath, plan: Plan, task: Task) -> tuple[str, str]:
    """A task's rows in words, and how to encode them again."""
    first = task.number * plan.settings.rows_per_task
    part = index_path(root, task.grid, task.number)
    rows = _ranges(range(first, first + task.num_rows))
    return rows, f"If its images are still there, remove {part} and run encode again."


def _ranges(rows: Iterable[int]) -> str:
    """Ascending row numbers as "rows 3, 7 to 9"."""
    runs: list[list[int]] = []
    for row in map(int, rows):
        if runs and runs[-1][1] == row - 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    plural = "s" * (len(runs) > 1 or runs[0][0] < runs[0][1])
    return f"row{plural} " + ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)
