"""Images a second of the encode command against its bare model, and of two workers against one.

    python tests/benchmarks/bench_encode.py [--data FOLDER] [--tokenizer NAME|DIR] [--rounds N]

The bare model encodes the same images, decoded and resized beforehand, in a loop without files, in
four ways: with direct convolutions, one image and eight at a time on all of torch's threads; and
with parallel passes of one thread each, with direct convolutions and with those that the command
chooses. The fastest way counts. `whole` is the command including loading and planning; `steady` its
tasks alone. `accounted` compares steady with a model that also had to spend the CPU time of
decoding the files. Workers are Ray actors of one thread each, measured from the first finished task
on. The measurements of a round are interleaved; the last lines are medians over the rounds.
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
from pipelines.jobs import ray_running
from pipelines.jobs.queue import Piece
from pipelines.jobs.run import run_tasks
from pipelines.planning.plan import Plan, Task, read_plan
from pipelines.store import CodeStore
from tokenizer import VQGAN, load_tokenizer

ROWS_PER_TASK = 14  # for the workers: many small tasks, so that both are busy until the end


def make_images(folder: Path, count: int) -> Path:
    """Write `count` JPEG files of 640x480 into a folder, smooth shapes and noise; returns it."""
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


def rate_in_parallel(tokenizer: VQGAN, pixels: torch.Tensor, threads: int) -> float:
    def encode_one(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            tokenizer.encode(batch)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        started = time.perf_counter()
        list(pool.map(encode_one, pixels.split(1)))
        seconds = time.perf_counter() - started
    torch.set_num_threads(threads)
    return len(pixels) / seconds


def pieces_of(plan: Plan) -> list[Piece[Task]]:
    """Every task as a whole."""
    return [Piece(task=task, first=0, end=task.num_rows) for task in plan.tasks]


def rate_of_command(flags: list[str], out: Path) -> tuple[float, float]:
    """Images a second of the whole command, and of its tasks alone after loading."""
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
    threads = torch.get_num_threads()
    flags, out = ["--in", str(data), "--tokenizer", name], folder / "codes.zarr"
    rate_of_command(
        flags, out
    )  # warms the page cache, and records which convolution the command uses
    as_command = load_tokenizer(name, "cpu", CodeStore.open(out).provenance["image"]["convolution"])
    direct = load_tokenizer(name)
    ways: dict[str, Callable[[], float]] = {
        "one by one": lambda: rate_of_model(direct, pixels, 1),
        "eight": lambda: rate_of_model(direct, pixels, 8),
        "in parallel": lambda: rate_in_parallel(direct, pixels, threads),
        "as the command": lambda: rate_in_parallel(as_command, pixels, threads),
    }
    ratios: dict[str, list[float]] = {"whole": [], "steady": [], "accounted": []}
    for _ in range(rounds):
        rates = {way: rate() for way, rate in ways.items()}
        model, decoding = max(rates.values()), decoding_seconds(files)
        whole, steady = rate_of_command(flags, out)
        ratios["whole"].append(whole / model)
        ratios["steady"].append(steady / model)
        ratios["accounted"].append(steady * (1 / model + decoding / threads))
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="a folder of photographs; default: synthetic images"
    )
    parser.add_argument("--images", type=int, default=96, help="number of synthetic images")
    parser.add_argument("--tokenizer", default="photo-f8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", nargs="+", default=["command", "workers"])
    flags = parser.parse_args(argv)
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = flags.data or make_images(folder / "images", flags.images)
        if "command" in flags.what:
            measure_command(data, flags.tokenizer, flags.rounds, folder)
        if "workers" in flags.what:
            measure_workers(data, flags.tokenizer, flags.rounds, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
