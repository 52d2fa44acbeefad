"""How much faster cached windows paint than the slow obvious loop; run it by hand.

    python tests/benchmarks/bench_sliding_window.py [--rows 24] [--columns 24] [--stride 1 4 8]

Both paint the same canvas by turns in one process. Prints a line for each stride and, last, the
ratio of the slow loop's time to ours at the last stride.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ops.noise import uniforms
from prior import GPT, PRESETS, GPTConfig
from prior.sampling import SamplingSettings, draw
from prior.sliding_window import paint_codes


@torch.inference_mode()
def paint_slowly(model, prefixes, numbers, settings):
    """The paper's loop as published: the whole window in one forward, for every cell."""
    size, (batch, rows, columns) = model.config.window, numbers.shape
    codes = torch.zeros(batch, rows, columns, dtype=torch.int64)
    for i in range(rows):
        for j in range(columns):
            top, left = (
                max(0, min(place - size // 2, length - size))
                for place, length in ((i, rows), (j, columns))
            )
            patch = codes[:, top : top + size, left : left + size].flatten(1)
            logits = model(torch.cat([prefixes, patch], 1)[:, :-1])
            place = prefixes.shape[1] - 1 + (i - top) * size + j - left
            codes[:, i, j] = draw(logits[:, place], numbers[:, i, j], settings).codes
    return codes


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--columns", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--stride", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = GPTConfig(
        codebook_size=1024, condition_vocab_size=1, condition_length=1, **PRESETS[options.preset]
    )
    model = GPT(config).eval()
    prefixes = torch.full((options.batch_size, 1), config.codebook_size)
    samples = range(options.batch_size)
    numbers = torch.from_numpy(uniforms(0, samples, options.rows, options.columns))
    settings = SamplingSettings(top_k=100)

    times: dict[str, list[float]] = {"slow": []}
    for _ in range(options.rounds):
        times["slow"].append(seconds(lambda: paint_slowly(model, prefixes, numbers, settings)))
        for stride in options.stride:
            times.setdefault(f"stride {stride}", []).append(
                seconds(
                    lambda stride=stride: paint_codes(
                        model, prefixes, numbers, settings, stride=stride
                    )
                )
            )
    slow = statistics.median(times["slow"])
    print(
        f"{options.rows}x{options.columns} codes, batch {options.batch_size}: {slow:.2f} s slowly"
    )
    for name, taken in list(times.items())[1:]:
        median = statistics.median(taken)
        print(f"{name}: {median:.2f} s, ratio {slow / median:.2f}")
    print(f"ratio {slow / median:.2f}")


if __name__ == "__main__":
    main()
