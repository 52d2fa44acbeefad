"""How much faster canvases are painted than by the slow obvious loop; run it by hand.

    python tests/benchmarks/bench_sliding_window.py [--grid 24] [--stride 8] [--images 1]
    python tests/benchmarks/bench_sliding_window.py --peer CHECKOUT --layers 12 --width 768 \
        --grid 64 --stride 8 [--images 8] [--unconditional]

The loop is the published one: for each cell of one image, in raster order, a forward over the whole
window of condition and image codes. With --peer, a checkout of CompVis' taming-transformers, the
forward is theirs and ours has the same weights; without, it is ours. Tells how many cells that both
draw by the paper's rule are the same code, what painting takes, how many codes are the same at
another batch size, and last the ratio of the times for a code.

The loop's cells all cost the same, so its time is that of some of them, spread over the canvas and
drawn by turns with ours: whenever ours has come a share further, its clock stops for one of them.
With stride 1 and more than 32 rows, ours is timed on the first and last rows, which share windows,
and on some of those between, of which each has its own; the output says so.
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
from compvis_loop import load_their_gpt, with_their_weights
from torch import Tensor

from ops.noise import uniforms
from ops.windows import Grid, Wavefront, window_start
from prior import GPT, GPTConfig, SamplingSettings
from prior.conditions.inputs import grid_prefix
from prior.sampling.decoder import Decoder
from prior.sampling.distributions import draw
from prior.sampling.generation_config import DEFAULT_CACHE_MEMORY
from prior.sampling.inference_copy import inference_copy
from prior.sampling.kv_cache import KVCache
from prior.sampling.sliding_window import parallel_rows_for, sample_codes

WINDOW = 16
CODEBOOK_SIZE = 1024
CHOICE = SamplingSettings(top_k=100)
MANY_ROWS = 32  # with stride 1, more are timed in part
ROWS_BETWEEN = 6  # then so many stand for those between the first and the last


class Loop:
    """The published loop over a canvas of codes (rows, columns), cell by cell, by the clock."""

    def __init__(
        self, forward: Callable[[Tensor], Tensor], codes: Tensor, condition_inputs: Tensor
    ) -> None:
        """`forward` makes logits (1, T, K) of tokens (1, T); `told` are the condition's tokens,
        (rows, columns) or (1,)."""
        self.codes, self.seconds = codes.clone(), []
        self._forward, self._condition_inputs = forward, condition_inputs

    @torch.no_grad()
    def draw_cell(self, row: int, column: int, uniform: Tensor) -> None:
        """Draw one cell by the number `uniform`; what is not drawn yet reads as code 0."""
        start = time.perf_counter()
        top, left = (
            window_start(place, size, WINDOW)
            for place, size in zip((row, column), self.codes.shape, strict=True)
        )
        window = slice(top, top + WINDOW), slice(left, left + WINDOW)
        condition_inputs = (
            self._condition_inputs
            if self._condition_inputs.ndim == 1
            else self._condition_inputs[window].flatten()
        )
        tokens = torch.cat([condition_inputs, self.codes[window].clamp(min=0).flatten()])
        logits = self._forward(tokens[None, :-1])[:, -(WINDOW**2) :]
        here = logits.unflatten(1, (WINDOW, WINDOW))[:, row - top, column - left]
        self.codes[row, column] = draw(here, uniform[None], CHOICE).codes[0]
        self.seconds.append(time.perf_counter() - start)


class Painting:
    """Our side: `images` canvases at once, and what painting them has taken."""

    def __init__(self, model: GPT, condition_inputs: Tensor) -> None:
        """`told` are the condition's tokens, (images, rows, columns) or (images, 1)."""
        self.decoder, self.images = Decoder(inference_copy(model)), len(condition_inputs)
        self.cache_bytes = 0
        self._prefix = (
            (lambda _: condition_inputs)
            if condition_inputs.ndim == 2
            else grid_prefix(condition_inputs, WINDOW)
        )
        self._new_cache = self.decoder.new_cache
        self.decoder.new_cache = self._count_cache

    def _count_cache(self, *size: int) -> KVCache:
        self.cache_bytes += self.decoder.cache_bytes(*size)
        return self._new_cache(*size)

    def parallel_rows(self, grid: Grid) -> int:
        """How many rows of the grid are drawn side by side."""
        length = self.decoder.config.condition_length + WINDOW**2 - 1
        most = DEFAULT_CACHE_MEMORY // self.decoder.cache_bytes(self.images, length)
        return parallel_rows_for(self.decoder.device, self.images, grid, most)

    def sample(self, stride: int, forced: Tensor, on_cells: Callable | None = None) -> Tensor:
        """Codes (images, rows, columns), drawn where `forced` (rows, columns) is -1."""
        self.cache_bytes = 0
        rows, columns = forced.shape
        return sample_codes(
            self.decoder,
            self._prefix,
            lambda row: torch.from_numpy(uniforms(0, range(self.images), 1, columns, row))[:, 0],
            CHOICE,
            (self.images, rows, columns),
            stride=stride,
            forced=forced,
            on_cells=on_cells,
        ).codes

    def seconds(self, stride: int, forced: Tensor, between: Sequence[Callable[[], None]]) -> float:
        """What that takes, without the calls of `between`, which are spread over it."""
        todo, drawn, aside = int((forced < 0).sum()), -int((forced >= 0).sum()), 0.0
        waiting = list(between)

        def on_cells(count: int, _: Tensor) -> None:
            nonlocal drawn, aside
            drawn += count
            paused = time.perf_counter()
            due = drawn * (len(between) + 1) // todo
            while len(between) - len(waiting) < min(due, len(between)):
                waiting.pop(0)()
            aside += time.perf_counter() - paused

        start = time.perf_counter()
        self.sample(stride, forced, on_cells)
        return time.perf_counter() - start - aside


def shares_of_rows(grid: Grid) -> list[tuple[range, float]]:
    """Which rows to time, and how many times over each of these ranges stands for its kind."""
    if grid.stride > 1 or grid.rows <= MANY_ROWS:
        return [(range(grid.rows), 1.0)]
    starts = [window_start(row, grid.rows, WINDOW) for row in range(grid.rows)]
    first, last = starts.count(0), grid.rows - starts.count(starts[-1])
    middle = (first + last - ROWS_BETWEEN) // 2
    return [
        (range(first), 1.0),
        (range(middle, middle + ROWS_BETWEEN), (last - first) / ROWS_BETWEEN),
        (range(last, grid.rows), 1.0),
    ]


def time_by_turns(
    painting: Painting, grid: Grid, codes: Tensor, turns: Sequence[Callable[[], None]]
) -> float:
    """Seconds that painting the whole grid takes, between the calls of `turns`."""
    seconds, parts = 0.0, shares_of_rows(grid)
    for number, (rows, times) in enumerate(parts):
        forced = codes.clone()
        forced[rows.start : rows.stop] = -1
        first, last = (len(turns) * end // len(parts) for end in (number, number + 1))
        seconds += times * painting.seconds(grid.stride, forced, turns[first:last])
        if len(parts) > 1:
            print(f"timed rows {rows.start} to {rows.stop - 1}, counted {times:.2f} times")
    return seconds


def equal_codes(model: GPT, condition_inputs: Tensor, side: int, width: int) -> float:
    """The share of the first sample's codes that are the same when `width` are painted at once."""
    cut = condition_inputs if condition_inputs.ndim == 2 else condition_inputs[:, :side, :side]
    nothing = torch.full((side, side), -1)
    alone = Painting(model, cut[:1]).sample(WINDOW // 2, nothing)
    among = Painting(model, cut.repeat_interleave(width, 0)[:width]).sample(WINDOW // 2, nothing)
    return float((alone[0] == among[0]).double().mean())


def models_of(options: argparse.Namespace, length: int) -> tuple[GPT, Callable, int]:
    """Our model, the loop's forward, and where the condition's tokens begin in the latter."""
    sizes = {"codebook_size": CODEBOOK_SIZE, "heads": options.heads}
    if options.peer is not None:
        theirs = load_their_gpt(
            options.peer,
            length=length + WINDOW**2,
            layers=options.layers,
            width=options.width,
            **sizes,
        )
        model = with_their_weights(theirs, condition_length=length, window=WINDOW, **sizes)
        return model, lambda tokens: theirs(tokens)[0], 0
    config = GPTConfig(
        codebook_size=CODEBOOK_SIZE,
        condition_vocab_size=CODEBOOK_SIZE + 1,
        condition_length=length,
        window=WINDOW,
        num_layers=options.layers,
        num_heads=options.heads,
        width=options.width,
    )
    model = GPT(config).eval()
    return model, model, CODEBOOK_SIZE


def main() -> int:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    side, images = options.grid, options.images
    model, forward, offset = models_of(options, 1 if options.unconditional else WINDOW**2)
    condition_inputs = (
        torch.zeros(images, 1, dtype=torch.int64)
        if options.unconditional
        else torch.randint(CODEBOOK_SIZE, (images, side, side))
    )
    codes = torch.randint(CODEBOOK_SIZE, (side, side))
    holes = [divmod(int(cell), side) for cell in torch.linspace(0, side**2 - 1, options.cells)]
    forced = codes.clone()
    for hole in holes:
        forced[hole] = -1

    loop = Loop(forward, forced, condition_inputs[0] + offset)
    numbers = torch.from_numpy(uniforms(0, [0], side, side))[0]
    turns = [partial(loop.draw_cell, *hole, numbers[hole]) for hole in holes]
    ours = Painting(model, condition_inputs + CODEBOOK_SIZE)
    alone = Painting(model, condition_inputs[:1] + CODEBOOK_SIZE)
    grid = Grid(side, side, WINDOW, options.stride)
    alone.sample(1, codes.where(codes != codes[0, 0], -1))  # warm up
    drawn = alone.sample(1, forced)[0]
    seconds = time_by_turns(ours, grid, codes, turns)

    same = sum(bool(drawn[hole] == loop.codes[hole]) for hole in holes)
    theirs = median(loop.seconds)
    share = seconds / (side**2 * images)
    steps = sum(1 for _ in Wavefront(grid, ours.parallel_rows(grid)))
    print(f"stride 1: {same} of {len(holes)} sampled cells are the loop's code")
    print(f"the loop: {theirs * 1000:.0f} ms a code, median of {len(holes)} of {side**2} cells")
    print(
        f"stride {options.stride}, {images} of {side}x{side} at once: {seconds:.1f} s, "
        f"{1 / share:.1f} codes/s, {steps} dependent steps"
    )
    print(
        f"KV caches {ours.cache_bytes / 2**20:.0f} MiB; "
        f"process at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    width, small = max(2, images), min(side, 24)
    equal = equal_codes(model, condition_inputs + CODEBOOK_SIZE, small, width)
    print(f"batch sizes 1 and {width}: {equal:.1%} of {small}x{small} codes are equal")
    print(f"ratio {theirs / share:.2f}")
    return 0 if same == len(holes) else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of CompVis/taming-transformers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, help="default: one for each 64 of the width")
    parser.add_argument("--grid", type=int, default=24, help="rows and columns of codes")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--images", type=int, default=1, help="painted at once")
    parser.add_argument("--unconditional", action="store_true")
    parser.add_argument("--cells", type=int, default=24, help="of the loop, that are timed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.heads = options.heads or max(1, options.width // 64)
    if options.grid < WINDOW:
        parser.error(f"--grid must be at least {WINDOW}: the published loop knows no smaller ones")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
