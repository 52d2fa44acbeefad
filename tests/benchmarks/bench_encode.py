"""Images a second of the encode command against its bare model, and of two workers against one.

    python tests/benchmarks/bench_encode.py [--data FOLDER] [--tokenizer NAME|DIR] [--rounds N]

The bare model runs on the same pictures, decoded and resized beforehand, in a tight loop that
touches no files, four ways: direct convolutions, one image and eight at a time on all of torch's
threads, and passes side by side on one thread each, direct and as the command convolves. The
fastest counts. `whole` is the command with everything, loading and planning too; `steady` its tasks
alone. `accounted` holds steady against a model that also had to spend the CPU time of decoding the
files. Workers are Ray actors of one thread each, measured from the first finished task on. All of
a round is interleaved; the last lines are medians of the rounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ops.images import Transform, to_pixels
from ops.runtime import keep_freed_memory
from pipelines import encode
from pipelines.encoding.worker import EncodeWorker
from pipelines.inputs.listing import list_input
from pipelines.jobs.actors import ray_running
from pipelines.jobs.queue import Piece
from pipelines.jobs.run import run_tasks
from pipelines.planning.plan import Plan, Task, read_plan
from pipelines.store import CodeStore
from tokenizer import VQGAN, load_tokenizer

ROWS_PER_TASK = 14  # for the workers: many tasks, so that little of the time is ragged ends


def make_images(folder: Path, count: int) -> Path:
    """A folder of JPEG files of 640x480, smooth shapes and grain."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (9, 12, 3), np.uint8))
        image = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(float)
        image += random.normal(0, 5, image.shape)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def rate_of_model(tokenizer: VQGAN, pixels: torch.Tensor, batch_size: int) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in pixels.split(batch_size):
            tokenizer.encode(batch)
    return len(pixels) / (time.perf_counter() - started)


def rate_side_by_side(tokenizer: VQGAN, pixels: torch.Tensor, parallel_rows: int) -> float:
    def one(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            tokenizer.encode(batch)

    with ThreadPoolExecutor(
        parallel_rows, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        started = time.perf_counter()
        list(pool.map(one, pixels.split(1)))
        seconds = time.perf_counter() - started
    torch.set_num_threads(parallel_rows)
    return len(pixels) / seconds


def pieces_of(plan: Plan) -> list[Piece[Task]]:
    """Every task as a whole."""
    return [Piece(task=task, first=0, end=task.num_rows) for task in plan.tasks]


def rate_of_command(flags: list[str], out: Path) -> tuple[float, float]:
    """Images a second with everything counted, and of the tasks alone once all is loaded."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    assert encode.main([*flags, "--out", str(out)]) == 0
    whole = time.perf_counter() - started
    shutil.rmtree(out / "_index")
    plan = read_plan(out)
    worker = EncodeWorker(out, torch.get_num_threads())
    started = time.perf_counter()
    run_tasks(pieces_of(plan), lambda: worker, on_result=lambda piece, done: None, overlap=2)
    return plan.num_rows / whole, plan.num_rows / (time.perf_counter() - started)


def rate_of_workers(out: Path, workers: int) -> float:
    """Rows a second of Ray actors, from the first finished task to the last."""
    shutil.rmtree(out / "_index")
    finished: list[tuple[float, int]] = []
    run_tasks(
        pieces_of(read_plan(out)),
        partial(EncodeWorker, out),
        on_result=lambda piece, done: finished.append((time.perf_counter(), done.rows)),
        workers=workers,
        overlap=2,
    )
    return sum(rows for _, rows in finished[1:]) / (finished[-1][0] - finished[0][0])


def decoding_seconds(files: list[bytes]) -> float:
    """CPU seconds to decode and crop one file."""
    started = time.process_time()
    for file in files:
        Transform().read(file, (256, 256))
    return (time.process_time() - started) / len(files)


def measure_command(data: Path, name: str, rounds: int, folder: Path) -> None:
    files = [Path(entry.uri).read_bytes() for entry in list_input(data).entries]
    pixels = to_pixels(np.stack([Transform().read(file, (256, 256)).image for file in files]))
    parallel_rows = torch.get_num_threads()
    flags, out = ["--in", str(data), "--tokenizer", name], folder / "codes.zarr"
    rate_of_command(flags, out)  # warms the disk's cache, and tells how the command convolves
    as_command = load_tokenizer(name, "cpu", CodeStore.open(out).provenance["image"]["convolution"])
    direct = load_tokenizer(name)
    ways: dict[str, Callable[[], float]] = {
        "one by one": lambda: rate_of_model(direct, pixels, 1),
        "eight": lambda: rate_of_model(direct, pixels, 8),
        "side by side": lambda: rate_side_by_side(direct, pixels, parallel_rows),
        "as the command": lambda: rate_side_by_side(as_command, pixels, parallel_rows),
    }
    ratios: dict[str, list[float]] = {"whole": [], "steady": [], "accounted": []}
    for _ in range(rounds):
        rates = {way: rate() for way, rate in ways.items()}
        model, decoding = max(rates.values()), decoding_seconds(files)
        whole, steady = rate_of_command(flags, out)
        ratios["whole"].append(whole / model)
        ratios["steady"].append(steady / model)
        ratios["accounted"].append(steady * (1 / model + decoding / parallel_rows))
        print("model", ", ".join(f"{way} {rate:.2f}" for way, rate in rates.items()))
        print(
            f"decoding {1000 * decoding:.1f} ms; command {whole:.2f}, steady {steady:.2f} images/s"
        )
    for kind, values in ratios.items():
        print(f"{kind} ratio {statistics.median(values):.3f}")


def measure_workers(data: Path, name: str, rounds: int, folder: Path) -> None:
    out = folder / "workers.zarr"
    flags = ["--in", str(data), "--out", str(out), "--tokenizer", name]
    assert encode.main([*flags, "--rows-per-task", str(ROWS_PER_TASK)]) == 0
    with ray_running(cpus=2):
        ratios = []
        for _ in range(rounds):
            one, two = (rate_of_workers(out, workers) for workers in (1, 2))
            ratios.append(two / one)
            print(f"one worker {one:.2f}, two {two:.2f} images/s")
    print(f"workers ratio {statistics.median(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="a folder of photographs; default: made ones")
    parser.add_argument("--images", type=int, default=96, help="how many to make without --data")
    parser.add_argument("--tokenizer", default="photo-f8")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = flags.data or make_images(folder / "images", flags.images)
        measure_command(data, flags.tokenizer, flags.rounds, folder)
        measure_workers(data, flags.tokenizer, flags.rounds, folder)


if __name__ == "__main__":
    main()
