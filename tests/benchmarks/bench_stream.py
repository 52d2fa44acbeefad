"""Streaming from a code store, against a memory map, one file an image, and training.

    python tests/benchmarks/bench_stream.py [--rows 65536] [--rows-per-task 4096] [--rounds 5]

The sides take turns in one process, with all files in the page cache. For each batch size, prints
the tokens a second and three ratios: to random rows of one numpy memory map of all codes (as
stored, 16 bits; the stream returns 64-bit tensors with labels), to one .npy file an image, and to
what training steps of the smallest prior preset consume.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ops.files import make_folders
from pipelines.store import (
    INDEX_SCHEMA,
    CodeStore,
    StoreAttributes,
    commit_task,
    write_metadata,
)
from pipelines.store.layout import staging_path
from pipelines.streaming.dataset import CodeDataset
from prior import make_model, preset_config

SIDE, CODES = 16, 16_384


def rate(step: Callable[[], object], rows: int, seconds: float) -> float:
    """Rows a second of step(), which processes `rows` rows, called for so many seconds."""
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        calls += 1
    return calls * rows / (time.perf_counter() - started)


def make_store(path: Path, codes: np.ndarray, rows_per_task: int) -> CodeStore:
    """A store of given codes (n, h, w)."""
    rows, grid = np.arange(len(codes)), f"{SIDE}x{SIDE}"
    columns = {"key": [f"{row}.jpg" for row in rows], "grid": [grid] * len(codes), "row": rows}
    columns |= {"source": columns["key"], "status": ["ok"] * len(codes)}
    columns |= {name: np.zeros(len(codes), np.int32) for name in ("view", "checksum")}
    given = pa.table(columns)
    empty = {name: pa.nulls(len(codes)) for name in INDEX_SCHEMA.names if name not in columns}
    index = pa.table({**dict(zip(given.column_names, given.columns, strict=True)), **empty})
    index = index.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    make_folders(staging_path(path))
    for task, first in enumerate(range(0, len(codes), rows_per_task)):
        shards = {"image": codes[first : first + rows_per_task]}
        part = index.slice(first, rows_per_task)
        commit_task(path, grid, task, rows_per_task, shards, part, False)
    track = {
        "tokenizer": "none", "fingerprint": "none", "codebook_size": CODES, "downsample_factor": 8
    }  # fmt: skip
    attributes = StoreAttributes(
        rows_per_task=rows_per_task, grids={grid: len(codes)}, tracks={"image": track}
    )
    write_metadata(path, attributes)
    return CodeStore.open(path)


def random_rows(codes: np.memmap, batch_size: int) -> Callable[[], object]:
    """A step that reads random rows of a memory map."""
    random = np.random.default_rng(1)
    return lambda: codes[random.integers(len(codes), size=batch_size)]


def one_file_an_image(folder: Path, files: int, batch_size: int) -> Callable[[], object]:
    """A step that reads one .npy file an image, as codes are often stored."""
    numbers = np.random.default_rng(2).integers(0, files, (256, batch_size))
    calls = count()

    def step() -> object:
        chosen = numbers[next(calls) % len(numbers)]
        return np.stack([np.load(folder / f"{number}.npy") for number in chosen])

    return step


def stream(dataset: CodeDataset) -> Callable[[], object]:
    batches = dataset.batches(0)
    return lambda: next(batches)


def training(batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """A training step of the smallest preset without its optimizer: a lower bound of its time."""
    torch.manual_seed(0)
    sizes = {"codebook_size": CODES, "condition_vocab_size": 1, "condition_length": 1}
    model = make_model(preset_config("tiny", **sizes, window=SIDE))
    prefix = torch.full((len(batch["codes"]), 1), CODES)
    return lambda: model.nll(prefix, batch["codes"]).mean().backward()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--rows-per-task", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--files", type=int, default=4096, help="number of .npy files")
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    codes = np.random.default_rng(0).integers(0, CODES, (flags.rows, SIDE, SIDE), np.uint16)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = make_store(folder / "codes.zarr", codes, flags.rows_per_task)
        codes.tofile(folder / "codes.bin")
        mapped = np.memmap(folder / "codes.bin", np.uint16, "r", shape=codes.shape)
        for number in range(flags.files):
            np.save(folder / f"{number}.npy", codes[number % len(codes)])
        del codes
        batch = CodeDataset(store, window=SIDE, batch_size=8).train_batch(0)
        train_step = training(batch)
        trained = max(rate(train_step, 8, 2 * flags.seconds) for _ in range(2))
        for batch_size in flags.batch_sizes:
            dataset = CodeDataset(store, window=SIDE, batch_size=batch_size)
            steps = {
                "stream": stream(dataset),
                "map": random_rows(mapped, batch_size),
                "files": one_file_an_image(folder, flags.files, batch_size),
            }
            rates: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(flags.rounds):
                for name, step in steps.items():
                    rates[name].append(rate(step, batch_size, flags.seconds))
            median = {name: statistics.median(found) for name, found in rates.items()}
            ours = median["stream"]
            print(
                f"batch {batch_size}: {ours * SIDE**2 / 1e6:,.0f} million tokens/s; "
                f"ratio {ours / median['map']:.2f} to a memory map's random rows, "
                f"{ours / median['files']:.1f} to one file an image, "
                f"{ours / trained:,.0f} to training preset tiny"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
