"""The code store of `--save codes`, in which row k is sample k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ops import paths
from ops.paths import AnyPath, P, join
from pipelines.generation.index import sample_name
from pipelines.generation.sample_buffer import Codes, SampleBuffer
from pipelines.generation.settings import GenerationRequest
from pipelines.planning import PLAN_SCHEMA, PlanSettings, Task, read_plan, write_part
from pipelines.store import (
    CodeStore,
    IndexLine,
    checksums_path,
    commit_task,
    empty_staging,
    grid_name,
    index_path,
    index_table,
    keep_tokenizer,
    plan_path,
    publish_committed,
    remove_partials,
    shard_path,
    staging_path,
    write_checksums,
    write_metadata,
)
from tokenizer import VQGAN

TRACK = "image"
GENERATED = "generated:"  # the source of such a row begins so: it has no image file


def codes_path(out: P) -> P:
    return join(out, "codes.zarr")


def prepare_store(
    request: GenerationRequest,
    tokenizer: VQGAN,
    label_names: Sequence[str],
    settings: dict[str, Any],
) -> None:
    """Make codes.zarr for all samples of the request, or extend it to them."""
    root = codes_path(request.out)
    paths.make_folder(staging_path(root))
    remove_partials(root)
    plan = read_plan(root)
    if plan is None or plan.num_rows != request.count:
        # Written again and not extended, so that row k is sample k however the count grew.
        paths.remove(checksums_path(root))
        paths.remove(plan_path(root, 0))
        _write_plan(request, root, tokenizer, label_names, settings)
        plan = read_plan(root)
    assert plan is not None
    assert tokenizer.folder is not None
    keep_tokenizer(root, tokenizer.folder)
    write_metadata(root, plan.attributes)
    publish_committed(root)


def _write_plan(
    request: GenerationRequest,
    root: AnyPath,
    tokenizer: VQGAN,
    label_names: Sequence[str],
    settings: dict[str, Any],
) -> None:
    config = tokenizer.config
    track = {
        "tokenizer": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": config.codebook_size,
        "downsample_factor": config.downsample_factor,
        "dtype": request.dtype.name,
        "generated": settings,
    }
    grid = grid_name(*request.shape)
    tasks = [
        Task(grid=grid, number=n, num_rows=len(request.samples_of(n)), part=0, group=n)
        for n in range(request.num_tasks)
    ]
    tables = (plan_rows(request, request.samples_of(task.number)) for task in tasks)
    plan_settings = PlanSettings(rows_per_task=request.samples_per_task, track=track)
    write_part(root, 0, plan_settings, tuple(label_names), tasks, tables)


def plan_rows(request: GenerationRequest, samples: range) -> pa.Table:
    """PLAN_SCHEMA for these samples: row k is sample k."""
    columns = {
        "key": [sample_name(sample) for sample in samples],
        "view": [0] * len(samples),
        "uri": [f"{GENERATED}{request.seed}/{sample}" for sample in samples],
        "offset": [None] * len(samples),
        "size": [0] * len(samples),
        "etag": [""] * len(samples),
        "label": [request.label_of(sample) for sample in samples],
        "grid": [grid_name(*request.shape)] * len(samples),
        "row": list(samples),
        "replaces": [None] * len(samples),
        "caption": [None] * len(samples),
        "carried": [None] * len(samples),
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


def commit_codes(request: GenerationRequest, buffer: SampleBuffer) -> bool:
    """Commit a task's codes; the `content` of a row is the hash of its PNG.

    Returns False where other content had been committed, see commit_task.
    """
    size = request.width, request.height
    lines = [IndexLine(*size, s.status, s.error, s.checksum) for s in buffer.index_lines()]
    index = index_table(plan_rows(request, buffer.samples), lines, buffer.codes)
    shards = {TRACK: buffer.codes}
    root, rows_per_task = codes_path(request.out), request.samples_per_task
    environments = buffer.environments()
    return commit_task(
        root, buffer.grid, buffer.task, rows_per_task, shards, index, environments=environments
    )


def has_codes(request: GenerationRequest, number: int) -> bool:
    """Whether a task's codes are in the store."""
    root, grid = codes_path(request.out), grid_name(*request.shape)
    shard = shard_path(root, grid, TRACK, number)
    return paths.exists(index_path(root, grid, number)) and paths.exists(shard)


def take_codes_out(request: GenerationRequest, number: int) -> None:
    """Remove a task's index part from the store, so that its codes are committed again."""
    root, grid = codes_path(request.out), grid_name(*request.shape)
    paths.remove(checksums_path(root))
    paths.remove(index_path(root, grid, number))


def stored_codes(request: GenerationRequest, number: int) -> dict[str, Codes]:
    """Codes (h, w) of the task's samples that the store has, by name."""
    if not has_codes(request, number):
        return {}
    store, grid = CodeStore.open(codes_path(request.out)), grid_name(*request.shape)
    rows = np.intersect1d(store.ok_rows(grid), request.samples_of(number))
    return dict(zip(map(sample_name, rows), store.read(grid, rows), strict=True))


def finish_store(out: AnyPath) -> None:
    """Finish the store once every task of a run is committed; may be called again."""
    remove_partials(codes_path(out))
    empty_staging(codes_path(out))
    write_checksums(codes_path(out))
