"""Seconds and peak memory of planning, resuming, opening and verifying a store of many rows.

    python tests/benchmarks/bench_store.py [--rows 100000 1000000] [--folder DIR]

The listing is synthetic, and so are the codes: 16x16 a row, noise keyed by the row's number, in
place of a tokenizer. Planning, commits, checksums and verify are the real ones. Each stage runs in
a process of its own and reports that process's whole peak memory; `imports` is what a process takes
that does nothing else, `listing` one that has also made the listing from which planning and
resuming start.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# No package of ours is imported at the top: Linux counts the memory of the parent process into a
# stage's peak, so the parent stays small.

SIDE = 16
ROWS_PER_TASK = 4096
STAGES: dict[str, Callable[[Path, int], float]] = {}


def stage(name: str) -> Callable[[Callable[[Path, int], float]], Callable[[Path, int], float]]:
    """Register a function (store, rows) -> seconds as a stage."""
    return lambda function: STAGES.setdefault(name, function)


@contextmanager
def clock() -> Iterator[list[float]]:
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def listing(rows: int) -> Any:
    """A table of ENTRY_SCHEMA: `rows` images in a thousand folders."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipelines.inputs.entries import ENTRY_SCHEMA

    def text(numbers: Any) -> Any:
        return pc.utf8_lpad(pa.array(numbers).cast(pa.large_string()), 8, "0")

    numbers = np.arange(rows)
    sizes = 50_000 + np.random.default_rng(0).integers(0, 100_000, rows)
    folders, between = text(numbers * 1000 // rows), pa.scalar("/", pa.large_string())
    keys = pc.binary_join_element_wise(folders, text(numbers), between)
    dash = pa.scalar("-", pa.large_string())
    times = text(1_700_000_000_000_000_000 + numbers * 7_654_321)
    columns = {
        "key": keys,
        "uri": pc.binary_join_element_wise(
            pa.scalar("/data/images/train", pa.large_string()), keys, between
        ),
        "offset": pa.nulls(rows, pa.int64()),
        "size": sizes,
        "etag": pc.binary_join_element_wise(text(sizes), times, dash),
        "label_name": folders,
        "caption": pa.nulls(rows, pa.large_string()),
        "carried": pa.nulls(rows, pa.large_string()),
    }
    return pa.table(columns, schema=ENTRY_SCHEMA)


def extend(store: Path, rows: int) -> Any:
    """Plan a store, or extend its plan, from the listing; returns the plan and the seconds."""
    import pyarrow as pa

    from pipelines.planning.plan import PlanSettings, extend_plan
    from pipelines.store.layout import tokenizer_path
    from tokenizer import load_tokenizer

    table, tokenizer = listing(rows), load_tokenizer(tokenizer_path(store, "image"))
    track = {
        "tokenizer": "noise",
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }
    settings = PlanSettings(rows_per_task=ROWS_PER_TASK, track=track, labels="first")
    grid = f"{SIDE}x{SIDE}"
    with clock() as seconds:
        plan = extend_plan(store, table, settings, 1, lambda fresh: pa.repeat(grid, len(fresh)))
    assert plan.num_rows == rows
    return plan, seconds[0]


@stage("imports")
def import_all(store: Path, rows: int) -> float:
    with clock() as seconds:
        import pipelines.encode
        import pipelines.tracks  # noqa: F401
    return seconds[0]


@stage("listing")
def make_listing(store: Path, rows: int) -> float:
    import_all(store, rows)
    with clock() as seconds:
        listing(rows)
    return seconds[0]


@stage("plan")
def plan_all(store: Path, rows: int) -> float:
    import_all(store, rows)
    return extend(store, rows)[1]


@stage("commit noise")
def commit_all(store: Path, rows: int) -> float:
    import_all(store, rows)
    from pipelines.planning.plan import read_plan, task_table
    from pipelines.store import commit_task, write_metadata
    from pipelines.store.recovery import empty_staging, write_checksums

    plan = read_plan(store)
    with clock() as seconds:
        for task in plan.tasks:
            codes, index = noise(task_table(store, task), plan.settings.track["codebook_size"])
            shards = {"image": codes}
            assert commit_task(store, task.grid, task.number, ROWS_PER_TASK, shards, index)
        write_metadata(store, plan.attributes)
        empty_staging(store)
        write_checksums(store)
    return seconds[0]


def noise(planned: Any, codebook_size: int) -> tuple[Any, Any]:
    """Codes (n, SIDE, SIDE) and index rows of planned rows; a row's codes depend on its number."""
    import numpy as np
    import pyarrow as pa

    from pipelines.inputs.reading import content_hash
    from pipelines.store import INDEX_SCHEMA, code_dtype
    from pipelines.store.shards import row_checksums

    codes = np.empty((len(planned), SIDE, SIDE), code_dtype(codebook_size))
    for index, row in enumerate(planned["row"].to_pylist()):
        random = np.random.Generator(np.random.Philox(key=row))
        codes[index] = random.integers(0, codebook_size, (SIDE, SIDE), codes.dtype)
    made = {
        "source": planned["uri"],
        "width": pa.repeat(640, len(codes)),
        "height": pa.repeat(480, len(codes)),
        "status": pa.repeat("ok", len(codes)),
        "error": pa.nulls(len(codes), pa.string()),
        "checksum": row_checksums(codes),
        "content": [content_hash(row.tobytes()) for row in codes],
    }
    columns = [made[name] if name in made else planned[name] for name in INDEX_SCHEMA.names]
    return codes, pa.table(columns, names=INDEX_SCHEMA.names).cast(INDEX_SCHEMA)


def waiting_tasks(store: Path, rows: int) -> tuple[int, float]:
    """The number of tasks not in the store, found as encode finds them, and the seconds."""
    from pipelines.store.commit import committed_tasks
    from pipelines.store.recovery import forget_missing, publish_committed, remove_partials

    with clock() as before:
        remove_partials(store)
        forget_missing(store)
    plan, seconds = extend(store, rows)
    with clock() as after:
        publish_committed(store)
        committed = committed_tasks(store)
        left = [task for task in plan.tasks if (task.grid, task.number) not in committed]
    return len(left), before[0] + seconds + after[0]


@stage("resume, nothing left")
def resume_nothing(store: Path, rows: int) -> float:
    import_all(store, rows)
    left, seconds = waiting_tasks(store, rows)
    assert left == 0
    return seconds


@stage("open")
def open_store(store: Path, rows: int) -> float:
    import_all(store, rows)
    from pipelines.store import CodeStore

    with clock() as seconds:
        assert len(CodeStore.open(store)) == rows
    return seconds[0]


@stage("verify")
def verify_all(store: Path, rows: int) -> float:
    import_all(store, rows)
    from pipelines import verify

    with clock() as seconds:
        assert verify.main([str(store)]) == 0
    return seconds[0]


@stage("resume, one task left")
def resume_one(store: Path, rows: int) -> float:
    import_all(store, rows)
    next((store / "_index").glob("*/0.parquet")).unlink()
    left, seconds = waiting_tasks(store, rows)
    assert left == 1
    return seconds


def begin(store: Path) -> None:
    """Make a store that holds only the tokenizer that its plan will name."""
    from pipelines.store.layout import staging_path, tokenizer_path
    from tokenizer import build_tokenizer, save_tokenizer

    staging_path(store).mkdir(parents=True)
    save_tokenizer(tokenizer_path(store, "image"), build_tokenizer("tiny", seed=0))


def run_stage(name: str, store: Path, rows: int, in_process: bool) -> dict[str, float]:
    """Seconds and peak memory in MiB of one stage, in a process of its own unless `in_process`."""
    if in_process:
        return {"seconds": STAGES[name](store, rows), "mebibytes": peak_mebibytes()}
    command = [sys.executable, __file__, "--stage", name, "--rows", str(rows)]
    command += ["--folder", str(store)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    metrics: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return metrics


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def measure(folder: Path, rows: int, in_process: bool) -> None:
    store = folder / f"{rows}.zarr"
    if in_process:
        begin(store)
    else:
        command = [sys.executable, __file__, "--stage", "begin", "--folder", str(store)]
        subprocess.run(command, check=True)
    print(f"{rows:,} rows of {SIDE}x{SIDE} codes in tasks of {ROWS_PER_TASK}")
    for name in STAGES:
        metrics = run_stage(name, store, rows, in_process)
        print(
            f"  {name:22} {metrics['seconds']:8.2f} s {metrics['mebibytes']:8.0f} MiB", flush=True
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to make the stores; default: /tmp")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument(
        "--in-process", action="store_true", help="all stages in this process: for tests"
    )
    flags = parser.parse_args(argv)
    if flags.stage == "begin":
        begin(flags.folder)
    elif flags.stage:
        seconds = STAGES[flags.stage](flags.folder, flags.rows[0])
        print(json.dumps({"seconds": seconds, "mebibytes": peak_mebibytes()}))
    else:
        with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
            for rows in flags.rows:
                measure(Path(folder), rows, flags.in_process)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
