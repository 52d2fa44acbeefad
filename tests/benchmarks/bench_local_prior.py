"""How much faster a prior without windows paints than the published sliding window; run by hand.

    python tests/benchmarks/bench_local_prior.py [--grid 24] [--images 1]
    python tests/benchmarks/bench_local_prior.py --peer CHECKOUT --layers 12 --width 768 \
        --grid 64 [--images 8]

Both priors have the same depth and width, and random weights: what they paint means nothing. The
loop is that of bench_sliding_window.py, told grids, on a sample of its cells by turns with ours,
which paints the whole canvas. Prints what ours takes, what it keeps, and the ratio last.
"""

from __future__ import annotations

import argparse
import resource
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from bench_sliding_window import CHOICE, CODEBOOK_SIZE, WINDOW, Loop, models_of

from ops.noise import uniforms
from prior import LocalConfig, LocalGPT
from prior.sampling.inference_copy import inference_copy
from prior.sampling.local import RowRing, rows_at_once, sample_locally


class Turns:
    """Calls each of `turns` when painting has come a share further, and keeps their time apart."""

    def __init__(self, turns: list, cells: int) -> None:
        self.waiting, self.turns, self.cells = list(turns), len(turns), cells
        self.done, self.seconds = 0, 0.0

    def __call__(self, count: int, _codes: torch.Tensor) -> None:
        self.done += count
        start = time.perf_counter()
        due = min(self.turns, self.done * (self.turns + 1) // self.cells)
        while self.turns - len(self.waiting) < due:
            self.waiting.pop(0)()
        self.seconds += time.perf_counter() - start


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    side, images = options.grid, options.images
    _, forward, offset = models_of(options, WINDOW**2)
    condition_inputs = torch.randint(CODEBOOK_SIZE, (side, side))
    loop = Loop(forward, torch.randint(CODEBOOK_SIZE, (side, side)), condition_inputs + offset)
    numbers = torch.from_numpy(uniforms(0, range(images), side, side))
    holes = [divmod(int(cell), side) for cell in torch.linspace(0, side**2 - 1, options.cells)]
    turns = Turns([partial(loop.draw_cell, *h, numbers[0][h]) for h in holes], side**2)

    config = LocalConfig(
        codebook_size=CODEBOOK_SIZE, condition_vocab_size=1, condition_length=1,
        radius=options.radius, num_layers=options.layers, num_heads=options.heads,
        width=options.width,
    )  # fmt: skip
    model = inference_copy(LocalGPT(config).eval())
    prefixes = torch.full((images, 1), CODEBOOK_SIZE)
    sample_locally(model, prefixes, numbers[:, :2], CHOICE)  # warm up
    start = time.perf_counter()
    sample_locally(model, prefixes, numbers, CHOICE, on_cells=turns)
    seconds = time.perf_counter() - start - turns.seconds

    theirs, ours = median(loop.seconds), seconds / (side**2 * images)
    print(f"the loop: {theirs * 1000:.0f} ms a code, median of {len(holes)} of {side**2} cells")
    print(f"ours, {images} of {side}x{side} at once: {seconds:.1f} s, {1 / ours:.1f} codes/s")
    at_once = rows_at_once(side, options.radius, images, prefixes.device)
    ring = RowRing(model, prefixes, side + 1, at_once + options.radius)
    print(
        f"keeps {ring.nbytes / 2**20:.0f} MiB of {at_once + options.radius} rows, however many "
        f"there are; process at most "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    print(f"ratio {theirs / ours:.2f}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of CompVis/taming-transformers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, help="default: one for each 64 of the width")
    parser.add_argument("--radius", type=int, default=8)
    parser.add_argument("--grid", type=int, default=24, help="rows and columns of codes")
    parser.add_argument("--images", type=int, default=1, help="painted at once")
    parser.add_argument("--cells", type=int, default=16, help="of the loop, that are timed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.heads = options.heads or max(1, options.width // 64)
    return options


if __name__ == "__main__":
    main()
