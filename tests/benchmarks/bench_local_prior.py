"""Sampling from a prior without windows, against the published sliding-window loop.

    python tests/benchmarks/bench_local_prior.py [--grid 24] [--images 1]
    python tests/benchmarks/bench_local_prior.py --peer CHECKOUT --layers 12 --width 768 \
        --grid 64 [--images 8]

Both priors have the same depth and width, and random weights. The loop is that of
bench_sliding_window.py with a grid condition, timed on a sample of its cells while ours samples the
whole canvas. CHECKOUT is a checkout of taming-transformers: see compvis_peer.py. Prints our time,
the size of our cache, and last the ratio of the times for a code.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from bench_sliding_window import CODEBOOK_SIZE, SETTINGS, WINDOW, PublishedLoop, make_models

from ops.noise import uniforms
from prior import LocalConfig, LocalGPT
from prior.sampling.inference_copy import inference_copy
from prior.sampling.local import RowRing, parallel_rows_for, sample_locally


class Interruptions:
    """An on_cells function that spreads calls evenly over the sampling and sums up their time."""

    def __init__(self, calls: Sequence[Callable[[], None]], cells: int) -> None:
        self.waiting, self.count, self.cells = list(calls), len(calls), cells
        self.done, self.seconds = 0, 0.0

    def __call__(self, count: int, _codes: torch.Tensor) -> None:
        self.done += count
        start = time.perf_counter()
        due = min(self.count, self.done * (self.count + 1) // self.cells)
        while self.count - len(self.waiting) < due:
            self.waiting.pop(0)()
        self.seconds += time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    side, images = options.grid, options.images
    _, forward, offset = make_models(options, WINDOW**2)
    condition = torch.randint(CODEBOOK_SIZE, (side, side))
    loop = PublishedLoop(forward, torch.randint(CODEBOOK_SIZE, (side, side)), condition + offset)
    numbers = torch.from_numpy(uniforms(0, range(images), side, side))
    cells = [divmod(int(cell), side) for cell in torch.linspace(0, side**2 - 1, options.cells)]
    calls = [partial(loop.sample_cell, *cell, numbers[0][cell]) for cell in cells]
    interruptions = Interruptions(calls, side**2)

    config = LocalConfig(
        codebook_size=CODEBOOK_SIZE, condition_vocab_size=1, condition_length=1,
        radius=options.radius, num_layers=options.layers, num_heads=options.heads,
        width=options.width,
    )  # fmt: skip
    model = inference_copy(LocalGPT(config).eval())
    prefixes = torch.full((images, 1), CODEBOOK_SIZE)
    sample_locally(model, prefixes, numbers[:, :2], SETTINGS)  # warm up
    start = time.perf_counter()
    sample_locally(model, prefixes, numbers, SETTINGS, on_cells=interruptions)
    seconds = time.perf_counter() - start - interruptions.seconds

    published, ours = median(loop.seconds), seconds / (side**2 * images)
    print(f"the loop: {published * 1000:.0f} ms a code, median of {len(cells)} of {side**2} cells")
    print(f"ours, {images} of {side}x{side} at once: {seconds:.1f} s, {1 / ours:.1f} codes/s")
    parallel_rows = parallel_rows_for(side, options.radius, images, prefixes.device)
    ring = RowRing(model, prefixes, side + 1, parallel_rows + options.radius)
    print(
        f"cache {ring.nbytes / 2**20:.0f} MiB, for {parallel_rows + options.radius} rows of any "
        f"canvas; process at most "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    print(f"ratio {published / ours:.2f}")
    return 0


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of taming-transformers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, help="default: one for each 64 of the width")
    parser.add_argument("--radius", type=int, default=8)
    parser.add_argument("--grid", type=int, default=24, help="rows and columns of codes")
    parser.add_argument("--images", type=int, default=1, help="images sampled at once")
    parser.add_argument("--cells", type=int, default=16, help="cells of the loop to time")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    options.heads = options.heads or max(1, options.width // 64)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
