"""`python -m pipelines.verify`: read a whole code store again and compare it with what it says."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ops.config import UserError
from pipelines.command_line import run_command
from pipelines.plan import Plan, Task, read_plan, task_rows
from pipelines.progress import progress_bar
from pipelines.store import StoreAttributes, StoreError, code_dtype, fill_value, grid_shape
from pipelines.store.commit import committed_tasks, read_part
from pipelines.store.layout import (
    index_path,
    metadata_files,
    read_attributes,
    says,
    shard_path,
    staging_path,
    tokenizer_path,
)
from pipelines.store.shards import row_checksums
from tokenizer import load_tokenizer

FROM_PLAN = ("key", "grid", "row", "view", "label", "replaces")  # columns plan and index share


@dataclass(frozen=True, kw_only=True)
class VerifyFlags:
    """Read a whole code store again: every row against its checksum, the index against the plan.

    Names the shard and the rows of whatever is damaged or missing; then the exit code is 1.
    """

    store: Annotated[Path, tyro.conf.Positional]
    """The code store, for instance codes.zarr."""


def main(argv: list[str] | None = None) -> int:
    return run_command(VerifyFlags, verify, argv, "pipelines.verify")


def verify(flags: VerifyFlags) -> int:
    """Print every problem and one line at the end; the exit code."""
    read_attributes(flags.store)
    plan = read_plan(flags.store)
    if plan is None:
        raise StoreError(f"{flags.store} has no plan, so there is nothing to hold it against.")
    problems = list(_problems_of_store(flags.store, plan))
    with progress_bar("shard") as progress:
        bar = progress.add_task("verifying", total=len(plan.tasks), note="")
        for task in plan.tasks:
            problems += _problems_of_task(flags.store, plan, task)
            progress.advance(bar)
    for problem in problems:
        print(problem)
    counts = f"{plan.num_rows} rows in {len(plan.tasks)} shards"
    if problems:
        print(f"{flags.store}: {len(problems)} problems in {counts}")
        return 1
    print(f"{flags.store}: {counts}, all as they should be")
    return 0


def _problems_of_store(root: Path, plan: Plan) -> Iterator[str]:
    """What is wrong with the metadata, the tokenizer's copy, or with parts nobody planned."""
    attributes = StoreAttributes(
        rows_per_task=plan.settings.rows_per_task,
        grids=plan.grids,
        label_names=plan.label_names,
        tracks={"image": plan.settings.track},
    )
    for name, data in metadata_files(attributes).items():
        if not says(root / name, data):
            yield f"{root / name}: not what the plan says; run encode again to restore it"
    try:
        fingerprint = load_tokenizer(tokenizer_path(root, "image")).fingerprint
    except UserError as error:
        yield f"{tokenizer_path(root, 'image')}: {error}"
    else:
        if fingerprint != plan.settings.track["fingerprint"]:
            yield f"{tokenizer_path(root, 'image')}: not the tokenizer that made the codes"
    planned = {(task.grid, task.number) for task in plan.tasks}
    for grid, number in sorted(committed_tasks(root) - planned):
        yield f"{index_path(root, grid, number)}: no plan lists this part"


def _problems_of_task(root: Path, plan: Plan, task: Task) -> Iterator[str]:
    first = task.number * plan.settings.rows_per_task
    path = index_path(root, task.grid, task.number)
    if not path.exists():
        yield f"{path}: missing, rows {first} to {first + task.num_rows - 1}; run encode again"
        return
    try:
        planned = task_rows(root, task)
        table, shards = read_part(root, task.grid, task.number)
    except StoreError as error:
        yield f"{error} (rows {first} to {first + task.num_rows - 1})"
        return
    lines = table.to_pylist()
    differing = [
        row["row"]
        for row, line in zip(planned, lines, strict=False)
        if any(row[name] != line[name] for name in FROM_PLAN) or row["uri"] != line["source"]
    ]
    if differing or len(planned) != len(lines):
        yield f"{path}: rows {_ranges(differing)} are not those of the plan"
    yield from _problems_of_shard(root, plan, task, lines, shards["image"])


def _problems_of_shard(
    root: Path, plan: Plan, task: Task, lines: list[dict[str, Any]], shard: dict[str, Any]
) -> Iterator[str]:
    path = shard_path(root, task.grid, "image", task.number)
    first = task.number * plan.settings.rows_per_task
    if not path.exists():
        staged = (staging_path(root) / shard["file"]).exists()
        what = "not published; run encode again" if staged else "missing"
        yield f"{path}: {what}, rows {first} to {first + task.num_rows - 1}"
        return
    data = path.read_bytes()
    whole = hashlib.sha256(data).hexdigest() == shard["sha256"]
    size = plan.settings.track["codebook_size"]
    dtype = code_dtype(size)
    height, width = grid_shape(task.grid)
    held = min(len(lines), len(data) // (height * width * dtype.itemsize))
    codes = np.frombuffer(data, dtype, held * height * width).reshape(held, height, width)
    wrong = [
        line["row"]
        for line, row, checksum in zip(lines, codes, row_checksums(codes), strict=False)
        if checksum != line["checksum"] or not _fits(line["status"], row, size)
    ]
    wrong += [line["row"] for line in lines[held:]]
    if wrong:
        yield f"{path}: damaged in rows {_ranges(wrong)}"
    elif not whole:
        yield f"{path}: damaged behind its rows, where plain zarr looks for their places"


def _fits(status: str, codes: np.ndarray[Any, Any], codebook_size: int) -> bool:
    """Whether a row holds codes of the codebook, or fill where there are none."""
    if status == "ok":
        return bool((codes < codebook_size).all())
    return bool((codes == fill_value(codes.dtype)).all())


def _ranges(rows: list[int]) -> str:
    """Ascending row numbers as "3, 7 to 9"."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][1] == row - 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


if __name__ == "__main__":
    sys.exit(main())
