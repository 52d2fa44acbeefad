"""`python -m pipelines.verify`: read a whole code store again and compare it with what it says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from ops.files import file_hash
from pipelines.console import progress_bar, run_command
from pipelines.planning import Plan, Task, read_plan, task_table
from pipelines.store import (
    TRACKS,
    StoreError,
    check_shard,
    checksums_path,
    committed_tasks,
    index_path,
    listed_files,
    metadata_files,
    plan_path,
    read_attributes,
    read_checksums,
    read_part,
    says,
    shard_path,
    staging_path,
    tokenizer_folder,
    track_path,
)
from pipelines.tracks import store_attributes
from tokenizer import load_tokenizer

MOST_THREADS = 8  # each holds one shard in memory
# Columns that the plan and the index share, by their names in both.
FROM_PLAN = {
    **{name: name for name in ("key", "grid", "row", "view", "label", "replaces")},
    "uri": "source",
}
REMEDIES = {
    "_plan": "Restore it from a copy; until then the shards cannot be checked.",
    "_tombstones": "Restore it from a copy.",
    "_tokenizer": "Remove the folder _tokenizer and run encode again with the same tokenizer.",
}


@dataclass(frozen=True, kw_only=True)
class VerifyFlags:
    """Read a whole code store again: every file against its checksum, every row against the index,
    the index against the plan.

    Names the shard and the rows of whatever is damaged or missing, and says what to do about it;
    then the exit code is 1.
    """

    store: Annotated[Path, tyro.conf.Positional]
    """The code store, for instance codes.zarr."""


def main(argv: list[str] | None = None) -> int:
    return run_command(VerifyFlags, verify, argv, "pipelines.verify")


def verify(flags: VerifyFlags) -> int:
    """Print every problem and one line at the end; the exit code."""
    root = flags.store
    if not any(path.exists() for path in (plan_path(root, 0), checksums_path(root))):
        read_attributes(root)  # raises where this is no code store at all
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "verify") as threads:
        problems, plan = _check(root, threads)
        tracks = further_tracks(root)
        for name in tracks:
            problems += _check(track_path(root, name), threads)[0]
    for problem in problems:
        print(_provenance_note(plan, problem))
    counts = f"{plan.num_rows} rows in {len(plan.tasks)} shards" if plan else "a store"
    counts += f", and the tracks {', '.join(tracks)}" if tracks else ""
    if problems:
        print(f"{root}: {len(problems)} problem{'s' * (len(problems) > 1)} in {counts}")
        return 1
    print(f"{root}: {counts}, all as they should be")
    return 0


def _provenance_note(plan: Plan | None, problem: str) -> str:
    """A problem with the remedy that helps: codes that were painted are painted again."""
    if plan is not None and "generated" in plan.settings.track:
        problem = problem.replace("If its images are still there, remove", "Remove")
        problem = problem.replace("un encode again", "un generate again")
    return problem


def further_tracks(root: Path) -> list[str]:
    """The tracks that a store has, or has what is left of."""
    marks = ("_plan/0.parquet", "_checksums.json")
    found = (
        track_dir
        for track_dir in (root / TRACKS).glob("*")
        if any((track_dir / m).exists() for m in marks)
    )
    return sorted(track_dir.name for track_dir in found)


def _check(root: Path, threads: ThreadPoolExecutor) -> tuple[list[str], Plan | None]:
    """Every problem of a store, or of a track's books, and the plan where that is whole."""
    problems: list[str] = []
    checksums: Mapping[str, str] = {}
    try:
        checksums = read_checksums(root) or {}
    except StoreError as error:
        problems.append(str(error))
    wrong = _wrong_files(root, checksums, threads)
    problems += [
        f"{root / name}: {what}. {REMEDIES[name.split('/')[0]]}"
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
    problems += _problems_of_metadata(root, plan)
    if not any(name.startswith("_tokenizer/") for name in wrong):
        problems += _problems_of_tokenizer(root, plan)
    problems += _problems_of_tasks(root, plan, wrong, threads)
    return problems + _why_not_finished(root, plan, checksums), plan


# --- the files beside the shards


def _wrong_files(
    root: Path, checksums: Mapping[str, str], threads: ThreadPoolExecutor
) -> dict[str, str]:
    """What is wrong with files that have a checksum, by path below the store."""

    def state(name: str) -> str | None:
        try:
            return None if file_hash(root / name) == checksums[name] else "damaged"
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    states = threads.map(state, checksums)
    return {name: what for name, what in zip(checksums, states, strict=True) if what}


def _problems_of_metadata(root: Path, plan: Plan) -> list[str]:
    if plan.track != "image":
        return []  # the store's has all tracks
    try:
        attributes = store_attributes(root, plan)
    except StoreError:
        return []  # a track's plan is damaged, which is told there
    return [
        f"{root / name}: not what the plan says. Run encode again to restore it."
        for name, data in metadata_files(attributes).items()
        if not says(root / name, data)
    ]


def _problems_of_tokenizer(root: Path, plan: Plan) -> list[str]:
    if "fingerprint" not in plan.settings.track:
        return []  # rows of plain numbers
    folder = tokenizer_folder(root)
    try:
        fingerprint = load_tokenizer(folder).fingerprint
    except Exception as error:  # until a run has ended it has no checksum: it may say anything
        return [f"{folder}: cannot be loaded ({error!r}). {REMEDIES['_tokenizer']}"]
    if fingerprint != plan.settings.track["fingerprint"]:
        return [f"{folder}: not the tokenizer that made the codes. {REMEDIES['_tokenizer']}"]
    return []


def _why_not_finished(root: Path, plan: Plan, checksums: Mapping[str, str]) -> list[str]:
    """What the last run has left to do, where it did not come to its end."""
    committed = committed_tasks(root)
    todo = [
        task
        for task in plan.tasks
        if (task.grid, task.number) not in committed and _part_name(task) not in checksums
    ]
    path = checksums_path(root)
    unlisted = sum(
        file.relative_to(root).as_posix() not in checksums for file in listed_files(root)
    )
    if todo:
        rows = sum(task.num_rows for task in todo)
        what = f"{root}: {len(todo)} of {len(plan.tasks)} tasks, {rows} rows, are not encoded yet"
    elif not path.exists():
        what = f"{path}: missing"
    elif checksums and unlisted:
        what = f"{path}: {unlisted} files are not in it yet"
    else:
        return []
    return [f"{what}: the run has not finished. Run encode again."]


# --- the tasks


def _problems_of_tasks(
    root: Path, plan: Plan, wrong: Mapping[str, str], threads: ThreadPoolExecutor
) -> list[str]:
    planned = {(task.grid, task.number) for task in plan.tasks}
    problems = [
        f"{index_path(root, grid, number)}: no plan lists this part. Remove it."
        for grid, number in sorted(committed_tasks(root) - planned)
    ]
    with progress_bar("shard") as progress:
        bar = progress.add_task("verifying", total=len(plan.tasks), note="")
        for found in threads.map(partial(_problems_of_task, root, plan, wrong), plan.tasks):
            problems += found
            progress.advance(bar)
    return problems


def _part_name(task: Task) -> str:
    return f"_index/{task.grid}/{task.number}.parquet"


def _problems_of_task(root: Path, plan: Plan, wrong: Mapping[str, str], task: Task) -> list[str]:
    part = index_path(root, task.grid, task.number)
    rows, anew = _rows_and_remedy(root, plan, task)
    what = wrong.get(_part_name(task))
    if what == "missing":
        return [f"{part}: missing, {rows}. Run encode again."]
    if what:
        return [f"{part}: {what}, {rows}. {anew}"]
    if not part.exists():
        return []  # not encoded yet, and counted elsewhere
    try:
        planned = task_table(root, task)
    except StoreError as error:
        return [f"{error} It plans {rows}."]
    try:
        index, shards = read_part(root, task.grid, task.number)
    except StoreError as error:
        return [f"{error} It lists {rows}. {anew}"]
    tracks = plan.attributes.tracks
    differing = _differing(planned, index)
    if len(differing) or shards.keys() != tracks.keys():
        first = task.number * plan.settings.rows_per_task
        rows = _ranges(first + differing) if len(differing) else rows
        return [f"{part}: not as planned in {rows}. {anew}"]
    return [
        problem
        for track in tracks
        for problem in _problems_of_shard(root, plan, task, track, index, shards[track])
    ]


def _differing(planned: pa.Table, index: pa.Table) -> np.ndarray[Any, Any]:
    """Places of the rows that plan and index do not both have alike."""
    both = min(len(planned), len(index))
    differing = np.arange(max(len(planned), len(index))) >= both
    for ours, theirs in FROM_PLAN.items():
        a, b = planned[ours].slice(0, both), index[theirs].slice(0, both)
        if not a.equals(b):
            alike = pc.fill_null(pc.equal(a, b), False)
            nulls = pc.and_(pc.is_null(a), pc.is_null(b))
            differing[:both] |= ~pc.or_(alike, nulls).to_numpy()
    return np.flatnonzero(differing)


def _problems_of_shard(
    root: Path, plan: Plan, task: Task, track: str, index: pa.Table, shard: Mapping[str, Any]
) -> list[str]:
    path = shard_path(root, task.grid, track, task.number)
    rows, anew = _rows_and_remedy(root, plan, task)
    try:
        corruption = check_shard(path, shard["sha256"], index, task.grid, track, plan.attributes)
    except FileNotFoundError:
        if (staging_path(root) / shard["file"]).exists():
            return [f"{path}: not published yet, {rows}. Run encode again."]
        return [f"{path}: missing, {rows}. {anew}"]
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror}), {rows}. {anew}"]
    if corruption.rows.any():
        wrong = index["row"].filter(pa.array(corruption.rows)).to_pylist()
        return [f"{path}: damaged in {_ranges(wrong)}. {anew}"]
    if corruption.file:
        where = "where plain zarr looks for their places"
        return [f"{path}: damaged outside its {rows}, {where}. {anew}"]
    return []


def _rows_and_remedy(root: Path, plan: Plan, task: Task) -> tuple[str, str]:
    """A task's rows in words, and what makes them anew."""
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
    many = "s" * (len(runs) > 1 or runs[0][0] < runs[0][1])
    return f"row{many} " + ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


if __name__ == "__main__":
    sys.exit(main())
