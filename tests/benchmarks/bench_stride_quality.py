"""What larger strides cost: how surprised the paper's rule is at what they paint; run it by hand.

    python tests/benchmarks/bench_stride_quality.py --prior RUN [--rows 48] [--columns 48] \
        [--stride 1 4 8] [--images 2] [--tokenizer NAME|DIR --out strides.png]

Paints the same samples with each stride, then asks of every code how likely it was in the window in
which stride 1 would have drawn it. What was drawn by that rule surprises as much as the prior is
unsure; a larger stride draws some codes having seen less around them, and surprises more.
With a tokenizer, writes the pictures too: a column for each stride, a row for each sample.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ops.images import image_grid, to_image, write_png
from ops.windows import Grid, Window, raster
from prior import GPT, Prior, load_prior
from prior.models.gpt import cross_entropy
from prior.sampling.inference_copy import inference_copy
from tokenizer import load_tokenizer
from tokenizer.tiling import decode_tiled

WINDOWS_AT_ONCE = 8


@torch.inference_mode()
def nll_by_the_rule(model: GPT, prefix: Tensor, codes: Tensor) -> Tensor:
    """Surprise (rows, columns), in nats, at each of codes (rows, columns) after tokens (1, C)."""
    grid = Grid(*codes.shape, model.config.window, 1)
    drawn_in: dict[Window, list[tuple[int, int]]] = defaultdict(list)
    for cell in raster(*codes.shape):
        drawn_in[grid.window_of(*cell)].append(cell)
    nll, windows = torch.zeros(codes.shape), list(drawn_in)
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        some = windows[first : first + WINDOWS_AT_ONCE]
        inside = torch.stack([codes[window.slices()].flatten() for window in some])
        tokens = torch.cat([prefix.expand(len(some), -1), inside], dim=1)[:, :-1]
        positions = model.positions(some[0].rows, some[0].columns)[:-1]
        features = model.features(tokens, positions)[:, prefix.shape[1] - 1 :]
        for window, own in zip(some, features, strict=True):
            rows, columns = zip(*drawn_in[window], strict=True)
            places = [window.offset_of(*cell) for cell in drawn_in[window]]
            nll[rows, columns] = cross_entropy(model.head(own[places]), codes[rows, columns])
    return nll


def pictures(tokenizer_name: str, sampled: list[Tensor]) -> np.ndarray:
    """One picture of codes (N, rows, columns) of each stride: a column each, a row a sample."""
    tokenizer = load_tokenizer(tokenizer_name)
    factor = tokenizer.config.downsample_factor
    images = [
        to_image(decode_tiled(tokenizer, codes[None], tuple(side * factor for side in codes.shape)))
        for codes in torch.stack(sampled, dim=1).flatten(0, 1)
    ]
    return image_grid(np.concatenate(images), columns=len(sampled))


def measure(prior: Prior, options: argparse.Namespace, stride: int) -> Tensor:
    """Paint with a stride, print a line; the codes (N, rows, columns)."""
    model = inference_copy(prior.model)
    assert isinstance(model, GPT)
    start = time.perf_counter()
    sampled = prior.sample(
        options.rows,
        options.columns,
        count=options.images,
        seed=options.seed,
        stride=stride,
        top_p=options.top_p,
    )
    seconds = time.perf_counter() - start
    prefix = prior.conditions.null_tokens(1)
    each = [float(nll_by_the_rule(model, prefix, codes).mean()) for codes in sampled]
    spread = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    print(
        f"stride {stride}: {statistics.mean(each):.3f} nats a code by the rule of stride 1 "
        f"(standard error {spread:.3f} of {len(each)}), {sampled.numel() / seconds:.0f} codes/s",
        flush=True,
    )
    return sampled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prior", type=Path, help="a run or model folder; without, nothing is done"
    )
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--columns", type=int, default=48)
    parser.add_argument("--stride", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--tokenizer", help="a bundled one's name or a model folder, for pictures")
    parser.add_argument("--out", type=Path, default=Path("strides.png"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.prior is None:
        print("name a trained prior: --prior RUN")
        return 0
    torch.set_num_threads(options.threads)
    prior = load_prior(options.prior)
    if not isinstance(prior.model, GPT):
        parser.error("a prior without windows has no stride")
    sampled = [measure(prior, options, stride) for stride in options.stride]
    if options.tokenizer:
        write_png(options.out, pictures(options.tokenizer, sampled))
        print(f"{options.out}: strides {options.stride} from left to right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
