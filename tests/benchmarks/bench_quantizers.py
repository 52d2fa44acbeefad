"""The quantizers compared: the same small autoencoder, data and number of steps for each.

    python tests/benchmarks/bench_quantizers.py --data FOLDER ... --steps 1700 [--kinds vq ...]

Each quantizer has 4,096 codes in its usual number of dimensions. Training uses crops of the images
that the trainers would train on; PSNR, SSIM, the number of codes used and their perplexity are of
the averaged weights on the held-out images, in squares of 256 pixels. `running` is the codebook
usage measured in training. Seven quantizers at 1,700 steps take about 25 minutes on one core.
Without --data the images are synthetic: that tests the code and compares nothing. Prints a Markdown
table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_encode import make_images
from torch import Tensor

from ops.runtime import keep_freed_memory
from pipelines.inputs.bad_images import Ledger
from pipelines.inputs.holdout import held_out
from pipelines.inputs.listing import list_input
from pipelines.inputs.reading import read_entry
from pipelines.training.image_dataset import PHOTOGRAPHS, ImageCrops, load_batches
from pipelines.training.loop import step_seed
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.recipe import TokenizerRecipe
from pipelines.training.tokenizer_data import evaluation_samples
from pipelines.training.tokenizer_task import TokenizerTask
from tokenizer import VQGAN, VQGANConfig
from tokenizer.autoencoder import AutoencoderConfig
from tokenizer.losses import LossConfig
from tokenizer.quantizers import QuantizerConfig

AUTOENCODER = AutoencoderConfig(
    channels=48, channel_mult=(1, 2), num_res_blocks=1, decoder_res_blocks=2,
    attention_levels=(), mid_block=False, latent_channels=96, norm="channel", patch_size=4,
)  # fmt: skip
SIZE = 4096
DIMENSIONS = {"vq": 64, "ema": 64, "gumbel": 64, "simvq": 64, "l2": 8, "fsq": 4, "lfq": 12}
RECIPE = TokenizerRecipe(
    preset="not a named one",
    losses=LossConfig(l2_weight=2.0, perceptual="none", adversarial="none"),
    optimizer=OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.99), warmup_steps=50),
    batch_size=8,
    crop_size=96,
)
COLUMNS = ("quantizer", "dim", "PSNR, dB", "SSIM", "codes used", "perplexity", "running",
           "bits/pixel", "entropy bits/pixel", "steps/s")  # fmt: skip


def quantizer_config(kind: str, steps: int) -> QuantizerConfig:
    """A quantizer of a kind with SIZE codes; its schedules end with the run."""
    return QuantizerConfig(
        kind=kind,
        codebook_size=SIZE,
        code_dim=DIMENSIONS[kind],
        levels=(8, 8, 8, 8) if kind == "fsq" else (),
        temperature_steps=steps,
        kl_steps=steps // 10,
    )


def row(kind: str, crops: ImageCrops, ledger: Ledger, measured: Tensor, steps: int) -> list[str]:
    """Train and evaluate with one quantizer; returns a row of the table."""
    torch.manual_seed(0)
    config = VQGANConfig(autoencoder=AUTOENCODER, quantizer=quantizer_config(kind, steps))
    train_task = TokenizerTask(VQGAN(config), RECIPE, steps, measured, torch.device("cpu"))
    seconds = []
    for step, pixels in enumerate(load_batches(crops, ledger, 0, steps)):
        torch.manual_seed(step_seed(0, step))
        started = time.perf_counter()
        metrics = train_task.train_step(pixels, step)
        seconds.append(time.perf_counter() - started)
    found = train_task.evaluate(steps).metrics
    area = config.downsample_factor**2
    entropy = math.log2(found["held_out_perplexity"]) / area
    return [
        kind,
        str(config.quantizer.code_dim),
        f"{found['held_out_psnr']:.2f}",
        f"{found['held_out_ssim']:.3f}",
        f"{found['held_out_codes_used']:.0f}",
        f"{found['held_out_perplexity']:.0f}",
        f"{100 * float(metrics['codebook_usage']):.0f} %",
        f"{math.log2(SIZE) / area:.3f}",
        f"{entropy:.3f}",
        f"{1 / statistics.median(seconds):.2f}",
    ]


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", help="folders; default: synthetic images")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", default=list(DIMENSIONS), choices=list(DIMENSIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=24, help="number of synthetic images")
    flags = parser.parse_args(argv)
    keep_freed_memory()
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folders = flags.data or [make_images(folder / "images", flags.images)]
        entries = [entry for images in folders for entry in list_input(images).entries]
        ledger = Ledger(folder / "bad_images.jsonl")
        crops = ImageCrops(
            [(e.key, read_entry(e)) for e in entries if not held_out(e.key, 0.1)],
            batch_size=RECIPE.batch_size, crop_size=RECIPE.crop_size,
            scale_range=RECIPE.scale_range, seed=0,
        )  # fmt: skip
        others = [entry for entry in entries if held_out(entry.key, 0.1)]
        measured = evaluation_samples(PHOTOGRAPHS, others, RECIPE.evaluation_size, ledger.add)
        print(f"{len(crops.read)} images to train on, {len(measured)} to measure on")
        print(f"{flags.steps} steps of {RECIPE.batch_size} crops, {flags.threads} threads")
        print_row(COLUMNS)
        print_row(["---"] * len(COLUMNS))
        for kind in flags.kinds:
            print_row(row(kind, crops, ledger, measured, flags.steps))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
