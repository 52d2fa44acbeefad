"""The cost of larger strides: likelihood, at stride 1, of what each stride samples.

    python tests/benchmarks/bench_stride_quality.py --prior RUN [--rows 48] [--columns 48] \
        [--stride 1 4 8] [--images 2] [--tokenizer NAME|DIR --out strides.png]

Generates the same samples with each stride, then measures the negative log-likelihood of every code
in the window in which stride 1 would have sampled it. Codes sampled with stride 1 score the prior's
entropy; a larger stride samples some codes with less context, which raises the figure. With a
tokenizer, the images are written as well: a column for each stride, a row for each sample.
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
def stride_1_nll(model: GPT, prefix: Tensor, codes: Tensor) -> Tensor:
    """Negative log-likelihood, in nats, of codes (rows, columns) at stride 1; prefix (1, C)."""
    grid = Grid(*codes.shape, model.config.window, 1)
    cells_of: dict[Window, list[tuple[int, int]]] = defaultdict(list)
    for cell in raster(*codes.shape):
        cells_of[grid.window_of(*cell)].append(cell)
    nll, windows = torch.zeros(codes.shape), list(cells_of)
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        some = windows[first : first + WINDOWS_AT_ONCE]
        inside = torch.stack([codes[window.slices()].flatten() for window in some])
        tokens = torch.cat([prefix.expand(len(some), -1), inside], dim=1)[:, :-1]
        positions = model.positions(some[0].rows, some[0].columns)[:-1]
        features = model.features(tokens, positions)[:, prefix.shape[1] - 1 :]
        for window, own in zip(some, features, strict=True):
            rows, columns = zip(*cells_of[window], strict=True)
            offsets = [window.offset_of(*cell) for cell in cells_of[window]]
            nll[rows, columns] = cross_entropy(model.head(own[offsets]), codes[rows, columns])
    return nll


def decoded_grid(tokenizer_name: str, sampled: list[Tensor]) -> np.ndarray:
    """One image of all samples, from codes (N, rows, columns) for each stride."""
    tokenizer = load_tokenizer(tokenizer_name)
    factor = tokenizer.config.downsample_factor
    images = [
        to_image(decode_tiled(tokenizer, codes[None], tuple(side * factor for side in codes.shape)))
        for codes in torch.stack(sampled, dim=1).flatten(0, 1)
    ]
    return image_grid(np.concatenate(images), columns=len(sampled))


def measure(prior: Prior, options: argparse.Namespace, stride: int) -> Tensor:
    """Sample with a stride and print its figures; returns the codes (N, rows, columns)."""
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
    each = [float(stride_1_nll(model, prefix, codes).mean()) for codes in sampled]
    spread = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    print(
        f"stride {stride}: {statistics.mean(each):.3f} nats a code at stride 1 "
        f"(standard error {spread:.3f} of {len(each)}), {sampled.numel() / seconds:.0f} codes/s",
        flush=True,
    )
    return sampled


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prior", type=Path, help="a run or model folder; without it, nothing is done"
    )
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--columns", type=int, default=48)
    parser.add_argument("--stride", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top-p", type=float)
    parser.add_argument(
        "--tokenizer", help="a bundled one's name or a model folder, to write images"
    )
    parser.add_argument("--out", type=Path, default=Path("strides.png"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    if options.prior is None:
        print("name a trained prior: --prior RUN")
        return 0
    torch.set_num_threads(options.threads)
    prior = load_prior(options.prior)
    if not isinstance(prior.model, GPT):
        parser.error("only a GPT prior has strides to compare")
    sampled = [measure(prior, options, stride) for stride in options.stride]
    if options.tokenizer:
        write_png(options.out, decoded_grid(options.tokenizer, sampled))
        print(f"{options.out}: strides {options.stride} from left to right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
