"""Sampling through the sliding window with KV caches, against the published loop.

    python tests/benchmarks/bench_sliding_window.py [--grid 24] [--stride 8] [--images 1]
    python tests/benchmarks/bench_sliding_window.py --peer CHECKOUT --layers 12 --width 768 \
        --grid 64 --stride 8 [--images 8] [--unconditional]

The published loop runs, for each cell of one image in raster order, a forward over the whole window
of condition and image codes. With --peer, a checkout of taming-transformers (see compvis_peer.py),
the forward is the peer's and ours has the same weights; without, it is ours. Prints how many of the
cells that both sample by the paper's rule get the same code, the time of sampling, how many codes
are the same at another batch size, and last the ratio of the times for a code.

All cells of the loop cost the same, so its time is measured on some of them, spread over the
canvas: sampling pauses regularly for one of them. With stride 1 and more than 32 rows, ours is
timed on the first and last rows, which share windows, and on some of those between, each of which
has windows of its own; the output says so.
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
from compvis_peer import peer_gpt, with_peer_weights
from torch import Tensor

from ops.noise import uniforms
from ops.windows import Grid, Wavefront, window_start
from prior import GPT, GPTConfig
from prior.conditions.inputs import grid_prefix
from prior.sampling.decoder import Decoder
from prior.sampling.distributions import SamplingSettings, draw
from prior.sampling.generation_config import DEFAULT_CACHE_MEMORY
from prior.sampling.inference_copy import inference_copy
from prior.sampling.kv_cache import KVCache
from prior.sampling.sliding_window import parallel_rows_for, sample_codes

WINDOW = 16
CODEBOOK_SIZE = 1024
SETTINGS = SamplingSettings(top_k=100)
MANY_ROWS = 32  # with stride 1, only a part of more rows is timed
MIDDLE_ROWS = 6  # rows that then stand for all between the first and the last


class PublishedLoop:
    """The published sampling loop over a canvas of codes (rows, columns), with times per cell."""

    def __init__(
        self, forward: Callable[[Tensor], Tensor], codes: Tensor, condition: Tensor
    ) -> None:
        """`forward` returns logits (1, T, K) of tokens (1, T); `condition` holds the condition's
        tokens, (rows, columns) or (1,)."""
        self.codes, self.seconds = codes.clone(), []
        self._forward, self._condition = forward, condition

    @torch.no_grad()
    def sample_cell(self, row: int, column: int, uniform: Tensor) -> None:
        """Sample one cell with the number `uniform`; open cells are read as code 0."""
        start = time.perf_counter()
        top, left = (
            window_start(position, size, WINDOW)
            for position, size in zip((row, column), self.codes.shape, strict=True)
        )
        window = slice(top, top + WINDOW), slice(left, left + WINDOW)
        condition = self._condition
        if condition.ndim == 2:
            condition = condition[window].flatten()
        tokens = torch.cat([condition, self.codes[window].clamp(min=0).flatten()])
        logits = self._forward(tokens[None, :-1])[:, -(WINDOW**2) :]
        here = logits.unflatten(1, (WINDOW, WINDOW))[:, row - top, column - left]
        self.codes[row, column] = draw(here, uniform[None], SETTINGS).codes[0]
        self.seconds.append(time.perf_counter() - start)


class Sampler:
    """Our side: samples `images` canvases at once and measures time and cache memory."""

    def __init__(self, model: GPT, condition: Tensor) -> None:
        """`condition` holds the condition's tokens, (images, rows, columns) or (images, 1)."""
        self.decoder, self.images = Decoder(inference_copy(model)), len(condition)
        self.cache_bytes = 0
        self._prefix = (
            (lambda _: condition) if condition.ndim == 2 else grid_prefix(condition, WINDOW)
        )
        self._new_cache = self.decoder.new_cache
        self.decoder.new_cache = self._count_cache

    def _count_cache(self, *size: int) -> KVCache:
        self.cache_bytes += self.decoder.cache_bytes(*size)
        return self._new_cache(*size)

    def parallel_rows(self, grid: Grid) -> int:
        """How many rows of the grid are sampled in parallel."""
        length = self.decoder.config.condition_length + WINDOW**2 - 1
        max_caches = DEFAULT_CACHE_MEMORY // self.decoder.cache_bytes(self.images, length)
        return parallel_rows_for(self.decoder.device, self.images, grid, max_caches)

    def sample(self, stride: int, forced: Tensor, on_cells: Callable | None = None) -> Tensor:
        """Codes (images, rows, columns), sampled where `forced` (rows, columns) is -1."""
        self.cache_bytes = 0
        rows, columns = forced.shape
        return sample_codes(
            self.decoder,
            self._prefix,
            lambda row: torch.from_numpy(uniforms(0, range(self.images), 1, columns, row))[:, 0],
            SETTINGS,
            (self.images, rows, columns),
            stride=stride,
            forced=forced,
            on_cells=on_cells,
        ).codes

    def seconds(self, stride: int, forced: Tensor, calls: Sequence[Callable[[], None]]) -> float:
        """Seconds of `sample`, without those of `calls`, which are spread evenly over it."""
        todo, done, pauses = int((forced < 0).sum()), -int((forced >= 0).sum()), 0.0
        waiting = list(calls)

        def on_cells(count: int, _: Tensor) -> None:
            nonlocal done, pauses
            done += count
            paused = time.perf_counter()
            due = done * (len(calls) + 1) // todo
            while len(calls) - len(waiting) < min(due, len(calls)):
                waiting.pop(0)()
            pauses += time.perf_counter() - paused

        start = time.perf_counter()
        self.sample(stride, forced, on_cells)
        return time.perf_counter() - start - pauses


def shares_of_rows(grid: Grid) -> list[tuple[range, float]]:
    """Ranges of rows to time, each with the factor by which its time counts."""
    if grid.stride > 1 or grid.rows <= MANY_ROWS:
        return [(range(grid.rows), 1.0)]
    starts = [window_start(row, grid.rows, WINDOW) for row in range(grid.rows)]
    first, last = starts.count(0), grid.rows - starts.count(starts[-1])
    middle = (first + last - MIDDLE_ROWS) // 2
    return [
        (range(first), 1.0),
        (range(middle, middle + MIDDLE_ROWS), (last - first) / MIDDLE_ROWS),
        (range(last, grid.rows), 1.0),
    ]


def sampling_seconds(
    sampler: Sampler, grid: Grid, codes: Tensor, calls: Sequence[Callable[[], None]]
) -> float:
    """Seconds of sampling the whole grid, without those of `calls`."""
    seconds, parts = 0.0, shares_of_rows(grid)
    for number, (rows, factor) in enumerate(parts):
        forced = codes.clone()
        forced[rows.start : rows.stop] = -1
        first, last = (len(calls) * end // len(parts) for end in (number, number + 1))
        seconds += factor * sampler.seconds(grid.stride, forced, calls[first:last])
        if len(parts) > 1:
            print(f"timed rows {rows.start} to {rows.stop - 1}, counted {factor:.2f} times")
    return seconds


def equal_codes(model: GPT, condition: Tensor, side: int, batch_size: int) -> float:
    """The part of the first sample's codes that are the same at another batch size."""
    cut = condition if condition.ndim == 2 else condition[:, :side, :side]
    open_cells = torch.full((side, side), -1)
    alone = Sampler(model, cut[:1]).sample(WINDOW // 2, open_cells)
    repeated = cut.repeat_interleave(batch_size, 0)[:batch_size]
    batched = Sampler(model, repeated).sample(WINDOW // 2, open_cells)
    return float((alone[0] == batched[0]).double().mean())


def make_models(options: argparse.Namespace, length: int) -> tuple[GPT, Callable, int]:
    """Our model, the loop's forward, and the id of the condition's first token in the latter."""
    sizes = {"codebook_size": CODEBOOK_SIZE, "heads": options.heads}
    if options.peer is not None:
        peer = peer_gpt(
            options.peer,
            length=length + WINDOW**2,
            layers=options.layers,
            width=options.width,
            **sizes,
        )
        model = with_peer_weights(peer, condition_length=length, window=WINDOW, **sizes)
        return model, lambda tokens: peer(tokens)[0], 0
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


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    side, images = options.grid, options.images
    model, forward, offset = make_models(options, 1 if options.unconditional else WINDOW**2)
    shape = (images, 1) if options.unconditional else (images, side, side)
    condition = torch.randint(1 if options.unconditional else CODEBOOK_SIZE, shape)
    codes = torch.randint(CODEBOOK_SIZE, (side, side))
    cells = [divmod(int(cell), side) for cell in torch.linspace(0, side**2 - 1, options.cells)]
    forced = codes.clone()
    for cell in cells:
        forced[cell] = -1

    loop = PublishedLoop(forward, forced, condition[0] + offset)
    numbers = torch.from_numpy(uniforms(0, [0], side, side))[0]
    calls = [partial(loop.sample_cell, *cell, numbers[cell]) for cell in cells]
    ours = Sampler(model, condition + CODEBOOK_SIZE)
    alone = Sampler(model, condition[:1] + CODEBOOK_SIZE)
    grid = Grid(side, side, WINDOW, options.stride)
    alone.sample(1, codes.where(codes != codes[0, 0], -1))  # warm up
    sampled = alone.sample(1, forced)[0]
    seconds = sampling_seconds(ours, grid, codes, calls)

    same = sum(bool(sampled[cell] == loop.codes[cell]) for cell in cells)
    published = median(loop.seconds)
    per_code = seconds / (side**2 * images)
    steps = sum(1 for _ in Wavefront(grid, ours.parallel_rows(grid)))
    print(f"stride 1: {same} of {len(cells)} sampled cells have the loop's code")
    print(f"the loop: {published * 1000:.0f} ms a code, median of {len(cells)} of {side**2} cells")
    print(
        f"stride {options.stride}, {images} of {side}x{side} at once: {seconds:.1f} s, "
        f"{1 / per_code:.1f} codes/s, {steps} dependent steps"
    )
    print(
        f"KV caches {ours.cache_bytes / 2**20:.0f} MiB; "
        f"process at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    batch_size, small = max(2, images), min(side, 24)
    equal = equal_codes(model, condition + CODEBOOK_SIZE, small, batch_size)
    print(f"batch sizes 1 and {batch_size}: {equal:.1%} of {small}x{small} codes are equal")
    print(f"ratio {published / per_code:.2f}")
    return 0 if same == len(cells) else 1


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of taming-transformers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, help="default: one for each 64 of the width")
    parser.add_argument("--grid", type=int, default=24, help="rows and columns of codes")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--images", type=int, default=1, help="images sampled at once")
    parser.add_argument("--unconditional", action="store_true")
    parser.add_argument("--cells", type=int, default=24, help="cells of the loop to time")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    options.heads = options.heads or max(1, options.width // 64)
    if options.grid < WINDOW:
        parser.error(f"--grid must be at least {WINDOW}: the published loop needs a whole window")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
