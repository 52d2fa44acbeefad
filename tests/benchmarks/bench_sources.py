"""Encoding the same photographs from a folder, tars and Parquet, on a disk and through S3.

    PYTHONPATH=. python tests/benchmarks/bench_sources.py [--images 64] [--rounds 3]

The S3 server is moto's, in threads of this process behind a counting proxy, so that it takes CPU
time from the encoder: the figures are those of a slow server without a network. The sources take
turns. Prints the images a second that encode reports (planning is not part of it), the CPU seconds
of this process and its children, the requests, and each source's ratio to the best local one. The
codes of all sources are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import resource
import statistics
import tarfile
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_encode import make_images

from ops import paths
from pipelines import encode
from pipelines.store import CodeStore
from tests.object_servers import proxy, s3_server

SHARDS = 4
RATE = re.compile(r"([\d.]+) images/s")


def make_sources(root: Path, images: Path) -> dict[str, Path]:
    """The images as files, in SHARDS tars and in as many tables."""
    files = sorted(images.iterdir())
    for name in ("folder", "tars", "parquet"):
        (root / name).mkdir(parents=True)
    for part in range(SHARDS):
        own = files[part::SHARDS]
        with tarfile.open(root / "tars" / f"{part}.tar", "w") as tar:
            for path in own:
                tar.add(path, path.name)
        table = pa.table({"image": [p.read_bytes() for p in own], "path": [p.name for p in own]})
        pq.write_table(table, root / "parquet" / f"{part}.parquet")
        for path in own:
            (root / "folder" / path.name).write_bytes(path.read_bytes())
    return {name: root / name for name in ("folder", "tars", "parquet")}


def cpu_seconds() -> float:
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in found)


def run(source: object, out: Path, flags: list[str]) -> tuple[float, float, float]:
    """Encode; (images a second, seconds in all, CPU seconds)."""
    printed = io.StringIO()
    started, cpu = time.perf_counter(), cpu_seconds()
    with contextlib.redirect_stdout(printed):
        assert encode.main(["--in", str(source), "--out", str(out), *flags]) == 0
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    match = RATE.search(printed.getvalue())
    assert match is not None
    return float(match[1]), seconds, cpu


def codes_of(path: Path) -> dict[str, bytes]:
    store = CodeStore.open(path)
    keys = [key.rpartition("/")[2] for key in store.index["key"].to_pylist()]
    return {key: np.asarray(store[n]["codes"]).tobytes() for n, key in enumerate(keys)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", default="photo-f8")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(argv)
    torch.set_num_threads(parsed.threads)
    flags = ["--tokenizer", parsed.tokenizer, "--image-size", str(parsed.size)]
    requests: list[tuple[str, ...]] = []
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    counts, found = {}, {}
    with ExitStack() as running:
        root = Path(running.enter_context(tempfile.TemporaryDirectory()))
        server = running.enter_context(s3_server())
        counted = running.enter_context(proxy(server, lambda *asked: requests.append(asked) or ""))
        running.enter_context(paths.storage_options(counted.options))
        local = make_sources(root / "in", make_images(root / "images", parsed.images))
        bucket = server.bucket()
        for path in (root / "in").rglob("*.*"):
            name = path.relative_to(root / "in").as_posix()
            paths.write_whole(bucket / name, path.read_bytes())
        sources: dict[str, object] = dict(local)
        sources |= {f"{name}, S3": bucket / name for name in local}
        for number in range(parsed.rounds):
            for name, source in sources.items():
                requests.clear()
                out = root / f"{number}-{name}.zarr"
                rows[name].append(run(source, out, flags))
                counts[name] = len(requests)
                found[name] = codes_of(out)
    first = found["folder"]
    assert all(codes == first for codes in found.values())
    best = max(statistics.median(rate for rate, _, _ in rows[name]) for name in local)
    for name, measured in rows.items():
        rate, seconds, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        print(
            f"{name}: {rate:.1f} images/s, {seconds:.2f} s with planning, {cpu:.2f} s CPU, "
            f"{counts[name]} requests, ratio {rate / best:.2f}"
        )
    print(f"codes equal from {len(found)} sources: {len(first)} images")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
