"""Images a second of the encode command against its bare model in a tight loop, interleaved.

    python tests/benchmarks/bench_encode.py [--data FOLDER] [--tokenizer NAME|DIR] [--rounds N]

The bare model runs on the same pictures, decoded and resized beforehand, and touches no files. It
runs three ways, and the fastest counts: one image at a time and eight, each on all of torch's
threads, and batches side by side on one thread each. Of the command everything counts, loading
and planning too; `steady` is its tasks alone. The last line is `ratio X`: the command's rate over
the model's, median of the rounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ops.images import Transform, to_pixels
from pipelines import encode
from pipelines.encode_task import EncodeWorker
from pipelines.jobs import run_tasks
from pipelines.plan import read_plan
from pipelines.readers import list_input
from tokenizer import load_tokenizer


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


def rate_of_model(tokenizer: torch.nn.Module, pixels: torch.Tensor, batch_size: int) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in pixels.split(batch_size):
            tokenizer.encode(batch)
    return len(pixels) / (time.perf_counter() - started)


def rate_side_by_side(tokenizer: torch.nn.Module, pixels: torch.Tensor, lanes: int) -> float:
    def one(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            tokenizer.encode(batch)

    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        started = time.perf_counter()
        list(pool.map(one, pixels.split(4)))
        seconds = time.perf_counter() - started
    torch.set_num_threads(lanes)
    return len(pixels) / seconds


def rate_of_command(folder: Path, tokenizer: str, out: Path) -> tuple[float, float]:
    """Images a second with everything counted, and of the tasks alone once all is loaded."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    assert encode.main(["--in", str(folder), "--out", str(out), "--tokenizer", tokenizer]) == 0
    whole = time.perf_counter() - started
    shutil.rmtree(out / "_index")
    worker = EncodeWorker(out, torch.get_num_threads())
    plan = read_plan(out)
    started = time.perf_counter()
    run_tasks(plan.tasks, lambda: worker, on_result=lambda task, done: None, overlap=2)
    return plan.num_rows / whole, plan.num_rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="a folder of photographs; default: made ones")
    parser.add_argument("--images", type=int, default=96, help="how many to make without --data")
    parser.add_argument("--tokenizer", default="photo-f8")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, name = Path(temporary), flags.tokenizer
        data = flags.data or make_images(folder / "images", flags.images)
        tokenizer = load_tokenizer(name)
        files = [Path(entry.uri).read_bytes() for entry in list_input(data).entries]
        images = [Transform().read(file, (256, 256)).image for file in files]
        pixels = to_pixels(np.stack(images))
        tokenizer.encode(pixels[:4])
        ratios, steady_ratios = [], []
        for _ in range(flags.rounds):
            one, eight = (rate_of_model(tokenizer, pixels, size) for size in (1, 8))
            lanes = rate_side_by_side(tokenizer, pixels, torch.get_num_threads())
            model = max(one, eight, lanes)
            command, steady = rate_of_command(data, name, folder / "codes.zarr")
            ratios.append(command / model)
            steady_ratios.append(steady / model)
            print(f"model {one:.2f}, {eight:.2f}, {lanes:.2f}; ", end="")
            print(f"command {command:.2f}, its tasks {steady:.2f} images/s")
        print(f"steady ratio {statistics.median(steady_ratios):.3f}")
        print(f"ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
