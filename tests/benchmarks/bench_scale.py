"""Seconds and peak memory of planning, resuming, verifying, opening and streaming many rows.

    python tests/benchmarks/bench_scale.py [--rows 100000 1000000] [--folder DIR] [--side 4]

The input is a folder of tar files that are empty, whose lists of images are synthetic, as if an
earlier run had kept them. The codes are synthetic too, noise keyed by the row's number, in place of
a tokenizer. Listing, planning, commits, checksums, verify and streaming are the real ones. Each
stage runs in a process of its own and reports wall and CPU seconds of the stage, the whole peak
memory of its process, and how much of that came after the imports.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# No package of ours is imported at the top: the parent stays small.

ROWS_PER_ARCHIVE = 10_000
BATCHES, BATCH_SIZE = 10_000, 64
STAGES: dict[str, Callable[[Path, int], Any]] = {}
SIDE = 4
Clocked = dict[str, float]


def stage(name: str) -> Callable[[Callable[[Path, int], Any]], Callable[[Path, int], Any]]:
    """Register a function (folder, rows) as a stage; it times what counts with `clock`."""
    return lambda function: STAGES.setdefault(name, function)


TIMES: Clocked = {}


@contextmanager
def clock() -> Iterator[None]:
    """Time the body into TIMES, and note the memory of the process before it."""
    before = memory("VmRSS")
    started, cpu = time.perf_counter(), time.process_time()
    yield
    TIMES.update(
        seconds=time.perf_counter() - started,
        cpu=time.process_time() - cpu,
        before=before,
    )


def memory(name: str) -> float:
    """A figure of /proc/self/status in MiB; getrusage would include the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


class SyntheticLists:
    """A MemberCache that knows every tar file: ROWS_PER_ARCHIVE images, fewer in the last."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def read(self, path: str, etag: str, description: str) -> Any:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        from pipelines.inputs.members import MEMBER_SCHEMA, Members

        first = int(Path(path).stem) * ROWS_PER_ARCHIVE
        numbers = np.arange(first, min(first + ROWS_PER_ARCHIVE, self.rows))
        text = pc.utf8_lpad(pa.array(numbers).cast(pa.large_string()), 9, "0")
        suffix, nothing = (pa.scalar(each, pa.large_string()) for each in (".jpg", ""))
        sizes = 50_000 + numbers * 7919 % 100_000
        columns = {
            "name": pc.binary_join_element_wise(text, suffix, nothing),
            "place": np.cumsum(sizes + 512) - sizes,
            "size": sizes,
            **{name: pa.nulls(len(numbers), pa.large_string()) for name in ("label", "carried")},
            "caption": pa.nulls(len(numbers), pa.large_string()),
        }
        return Members(pa.table(columns).select(MEMBER_SCHEMA.names).cast(MEMBER_SCHEMA))

    def write(self, *_: Any) -> None:
        raise AssertionError("every list is known")


def import_all() -> None:
    for module in ("encode", "streaming", "tracks", "verify"):
        importlib.import_module(f"pipelines.{module}")


def paths(folder: Path) -> tuple[Path, Path]:
    return folder / "images", folder / "codes.zarr"


def listing(folder: Path, rows: int) -> Any:
    from pipelines.inputs import list_input

    return list_input(paths(folder)[0], "first", cache=SyntheticLists(rows))


def encode(folder: Path, rows: int, plan_alone: bool = False) -> list[str]:
    """The encode command on the input; with `plan_alone` it encodes nothing of what it plans."""
    from unittest import mock

    from pipelines.flags import EncodeFlags
    from pipelines.tracks import encode_store

    images, store = paths(folder)
    flags = EncodeFlags(
        in_=(images,),
        out=store,
        tokenizer=str(folder / "tokenizer"),
        labels="first",
        image_size=8 * SIDE,
        device="cpu",
    )
    replaced = {"ArchiveLists": lambda _: SyntheticLists(rows)}
    if plan_alone:
        replaced["encode_tasks"] = lambda *_: None
    with mock.patch.multiple(encode_store, **replaced):
        return encode_store.encode_tracks(flags, {}).lines


@stage("imports")
def imports(folder: Path, rows: int) -> None:
    with clock():
        pass


@stage("listing")
def list_all(folder: Path, rows: int) -> None:
    with clock():
        assert len(listing(folder, rows).table) == rows


@stage("plan")
def plan_all(folder: Path, rows: int) -> None:
    with clock():
        encode(folder, rows, plan_alone=True)


@stage("commit noise")
def commit_all(folder: Path, rows: int) -> None:
    from pipelines.planning import read_plan, task_table
    from pipelines.store import commit_task, empty_staging, write_checksums

    store = paths(folder)[1]
    plan = read_plan(store)
    with clock():
        for task in plan.tasks:
            codes, index = noise(task_table(store, task), plan.settings.track["codebook_size"])
            shards, per_task = {"image": codes}, plan.settings.rows_per_task
            assert commit_task(store, task.grid, task.number, per_task, shards, index)
        empty_staging(store)
        write_checksums(store)


def noise(planned: Any, codebook_size: int) -> tuple[Any, Any]:
    """Codes (n, SIDE, SIDE) and index rows of planned rows; a row's codes depend on its number."""
    import numpy as np
    import pyarrow as pa

    from pipelines.inputs.reading import content_hash
    from pipelines.store import INDEX_SCHEMA, code_dtype, row_checksums

    codes = np.empty((len(planned), SIDE, SIDE), code_dtype(codebook_size))
    numbers = planned["row"].to_numpy().astype(np.uint64)[:, None] * np.uint64(SIDE**2)
    mixed = (numbers + np.arange(SIDE**2, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    codes[:] = ((mixed >> np.uint64(40)) % np.uint64(codebook_size)).reshape(codes.shape)
    made = {
        "source": planned["uri"],
        "width": pa.repeat(640, len(codes)),
        "height": pa.repeat(480, len(codes)),
        "status": pa.repeat("ok", len(codes)),
        "error": pa.nulls(len(codes), pa.large_string()),
        "checksum": row_checksums(codes),
        "content": [content_hash(b"%d" % row) for row in planned["row"].to_pylist()],
    }
    columns = [made[name] if name in made else planned[name] for name in INDEX_SCHEMA.names]
    return codes, pa.table(columns, names=INDEX_SCHEMA.names).cast(INDEX_SCHEMA)


@stage("first resume")
def resume_first(folder: Path, rows: int) -> None:
    """Nothing is left to encode; the row table is made."""
    resume(folder, rows)


@stage("resume")
def resume(folder: Path, rows: int) -> None:
    with clock():
        lines = encode(folder, rows)
    assert lines[-1].endswith(f"nothing to do; {rows} encoded, 0 failed, 0 skipped")


@stage("resume, listed anew")
def resume_listed(folder: Path, rows: int) -> None:
    from pipelines.planning.planned_input import planned_input_path

    planned_input_path(paths(folder)[1]).unlink(missing_ok=True)
    resume(folder, rows)


@stage("verify")
def verify_all(folder: Path, rows: int) -> None:
    from pipelines import verify

    with clock():
        assert verify.main([str(paths(folder)[1])]) == 0


@stage("open and count")
def open_store(folder: Path, rows: int) -> None:
    from pipelines.store import CodeStore

    with clock():
        assert len(CodeStore.open(paths(folder)[1])) == rows


@stage("first rank's open")
def open_first_stream(folder: Path, rows: int) -> None:
    """Of a store without a row table."""
    import shutil

    shutil.rmtree(paths(folder)[1] / "_rows", ignore_errors=True)
    open_stream(folder, rows)


@stage("a rank's open")
def open_stream(folder: Path, rows: int) -> None:
    """Everything a rank does before it has its first batch."""
    with clock():
        next(iter(stream(folder)))


def stream(folder: Path) -> Any:
    from pipelines.streaming import CodeStream

    return CodeStream(paths(folder)[1], batch_size=BATCH_SIZE, held_out_share=0.01)


@stage("batches")
def read_batches(folder: Path, rows: int) -> None:
    batches = iter(stream(folder))
    with clock():
        for _ in range(BATCHES):
            next(batches)


def begin(folder: Path, rows: int) -> None:
    """Make the empty tar files and the tokenizer that the plan will name."""
    from tokenizer import build_tokenizer, save_tokenizer

    images = paths(folder)[0]
    images.mkdir(parents=True)
    for number in range(-(-rows // ROWS_PER_ARCHIVE)):
        (images / f"{number:06}.tar").touch()
    save_tokenizer(folder / "tokenizer", build_tokenizer("tiny", seed=0))


def run_stage(name: str, folder: Path, rows: int, in_process: bool) -> Clocked:
    """The figures of one stage, in a process of its own unless `in_process`."""
    if in_process:
        return figures(name, folder, rows)
    command = [sys.executable, __file__, "--stage", name, "--rows", str(rows)]
    command += ["--folder", str(folder), "--side", str(SIDE), "--batches", str(BATCHES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Clocked = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(name: str, folder: Path, rows: int) -> Clocked:
    import_all()
    STAGES[name](folder, rows)
    return {**TIMES, "peak": memory("VmHWM")}


def measure(folder: Path, rows: int, only: list[str] | None, in_process: bool) -> None:
    folder = folder / str(rows)
    if not folder.exists():
        if in_process:
            begin(folder, rows)
        else:
            command = [sys.executable, __file__, "--stage", "begin", "--folder", str(folder)]
            subprocess.run([*command, "--rows", str(rows)], check=True)
    print(f"{rows:,} rows of {SIDE}x{SIDE} codes")
    print("| stage | seconds | CPU seconds | peak MiB | of it after the imports |")
    print("|---|---|---|---|---|")
    for name in only or STAGES:
        found = run_stage(name, folder, rows, in_process)
        more = found["peak"] - found["before"]
        print(
            f"| {name} | {found['seconds']:.2f} | {found['cpu']:.2f} | {found['peak']:,.0f} | "
            f"{more:,.0f} |",
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    global SIDE, BATCHES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to make the stores, and keep them")
    parser.add_argument("--side", type=int, default=SIDE, help="codes in a row of a grid")
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--only", nargs="+", choices=STAGES, help="stages, of stores that are kept")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument(
        "--in-process", action="store_true", help="all stages in this process: for tests"
    )
    flags = parser.parse_args(argv)
    SIDE, BATCHES = flags.side, flags.batches
    if flags.stage == "begin":
        begin(flags.folder, flags.rows[0])
    elif flags.stage:
        print(json.dumps(figures(flags.stage, flags.folder, flags.rows[0])))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            for rows in flags.rows:
                measure(flags.folder or Path(temporary), rows, flags.only, flags.in_process)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
