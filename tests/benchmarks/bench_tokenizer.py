"""Encode, decode and training steps of the paper's f16 network, beside the published code's.

    python tests/benchmarks/bench_tokenizer.py [--peer CHECKOUT] [--what encode decode train]

CHECKOUT is a copy of CompVis' taming-transformers whose imports work (it wants einops). Each side
is a process of its own, so that neither's memory settings help the other, and they take turns with
the same weights and pictures at equal threads. Encoding and decoding go one picture at a time.
Theirs runs eagerly without gradients, ours as load_tokenizer gives it, by direct convolutions and
by NNPACK. Training has no LPIPS on either side, and is measured before the critic starts and after:
theirs does as its trainer does, two forwards and both optimizers' steps in either case. Prints
medians over the rounds, each side's peak memory, and each ratio of theirs to ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ops.images import to_pixels
from ops.runtime import keep_freed_memory
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.recipe import TokenizerRecipe
from pipelines.training.tokenizer_task import TokenizerTask
from tokenizer import VQGAN, load_tokenizer, save_tokenizer
from tokenizer.importers import import_compvis
from tokenizer.losses import LossConfig

NETWORK: dict[str, Any] = {
    "ch": 128, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": (16,),
    "dropout": 0.0, "in_channels": 3, "out_ch": 3, "resolution": 256, "z_channels": 256,
    "double_z": False,
}  # fmt: skip
RATE, NEVER = 4.5e-6, 10**9


class Job(NamedTuple):
    """What a process is to do again and again."""

    side: str  # "theirs", "direct" or "nnpack"
    work: str  # "encode", "decode", "train before" or "train after" the critic starts
    peer: Path | None
    folder: Path  # where the weights and results lie
    size: int
    batch_size: int
    threads: int


def pictures(count: int, size: int) -> Tensor:
    """Smooth shapes and grain, as photographs have them: pixels (count, 3, size, size)."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8))
        image = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(float)
        images.append((image + random.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8))
    return to_pixels(np.stack(images))


class Theirs(nn.Module):
    """The peer's parts put together as its VQModel does, without its training framework."""

    def __init__(self, peer: Path, critic_start: int = NEVER) -> None:
        super().__init__()
        sys.path.insert(0, str(peer))
        from taming.modules.diffusionmodules.model import Decoder, Encoder
        from taming.modules.losses import vqperceptual
        from taming.modules.vqvae.quantize import VectorQuantizer2

        vqperceptual.LPIPS = nn.Identity  # it would be fetched, and is not asked for
        self.encoder, self.decoder = Encoder(**NETWORK), Decoder(**NETWORK)
        self.quantize = VectorQuantizer2(1024, 256, beta=0.25)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 1)
        self.loss = vqperceptual.VQLPIPSWithDiscriminator(
            disc_start=critic_start, disc_weight=0.8, perceptual_weight=0.0
        )
        critic = list(self.loss.discriminator.parameters())
        mine = {id(p) for p in critic}
        others = [p for p in self.parameters() if id(p) not in mine]
        self.sides = [others, critic]
        self.optimizers = [torch.optim.Adam(s, lr=RATE, betas=(0.5, 0.9)) for s in self.sides]

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents, loss, (_, _, codes) = self.quantize(self.quant_conv(self.encoder(pixels)))
        return latents, loss, codes

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def train_step(self, pixels: Tensor, step: int) -> None:
        for side, optimizer in enumerate(self.optimizers):
            for number, parameters in enumerate(self.sides):
                for parameter in parameters:
                    parameter.requires_grad_(number == side)
            latents, quantizer_loss, _ = self.encode(pixels)
            loss, _ = self.loss(
                quantizer_loss, pixels, self.decode(latents), side, step,
                last_layer=self.decoder.conv_out.weight, split="train",
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def their_work(job: Job) -> Callable[[int], Any]:
    assert job.peer is not None
    start = 0 if job.work == "train after" else NEVER
    torch.manual_seed(0)
    model, pixels = Theirs(job.peer, start), pictures(job.batch_size, job.size)
    model.load_state_dict(torch.load(job.folder / "theirs.pt"), strict=False)
    if job.work.startswith("train"):
        return lambda step: model.train().train_step(pixels, step)
    model.eval()
    with torch.no_grad():
        latents = model.encode(pixels[:1])[0]
    encode = torch.no_grad()(lambda step: model.encode(pixels[:1])[2])
    decode = torch.no_grad()(lambda step: model.decode(latents))
    return encode if job.work == "encode" else decode


def our_work(job: Job) -> Callable[[int], Any]:
    keep_freed_memory()  # as our commands do
    pixels = pictures(job.batch_size, job.size)
    if job.work.startswith("train"):
        train_task = our_task(job)
        return lambda step: train_task.train_step(pixels, step)
    model = load_tokenizer(job.folder / "model", convolution=job.side)
    with torch.inference_mode():
        codes = model.encode(pixels[:1])
    encode = torch.inference_mode()(lambda step: model.encode(pixels[:1]).flatten())
    decode = torch.inference_mode()(lambda step: model.decode(codes))
    return encode if job.work == "encode" else decode


def our_task(job: Job) -> TokenizerTask:
    start = 0 if job.work == "train after" else NEVER
    optimizer = OptimizerConfig(learning_rate=RATE, betas=(0.5, 0.9), schedule="constant")
    recipe = TokenizerRecipe(
        preset="imagenet-f16-1024",
        losses=LossConfig(perceptual="none", adversarial_start=start, adversarial_ramp=1),
        optimizer=optimizer,
        discriminator_optimizer=optimizer,
        batch_size=job.batch_size,
        crop_size=job.size,
    )
    model = VQGAN(load_tokenizer(job.folder / "model").config)
    model.load_state_dict(load_tokenizer(job.folder / "model").state_dict())
    return TokenizerTask(model, recipe, 2 * NEVER, torch.empty(0), torch.device("cpu"))


def serve(job: Job, pipe: Connection) -> None:
    """The process of one side: work when asked, and tell how long it took."""
    torch.set_num_threads(job.threads)
    work = their_work(job) if job.side == "theirs" else our_work(job)
    step, result = 0, None
    while pipe.recv():
        started = time.perf_counter()
        result = work(step)
        pipe.send(time.perf_counter() - started)
        step += 1
    pipe.send((peak_memory(), result.numpy() if isinstance(result, Tensor) else None))


def peak_memory() -> float:
    """The most memory that this process has had, in GiB; what getrusage tells counts its parent."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return found[0] / (1 << 20) if found else float("nan")


class Side:
    """One process, and the seconds of what it was asked to do."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.seconds = job.side, list[float]()
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(job, other), daemon=True)
        self.process.start()

    def work(self) -> None:
        self.pipe.send(True)
        self.seconds.append(self.pipe.recv())

    def stop(self) -> tuple[float, np.ndarray | None]:
        self.pipe.send(False)
        found = self.pipe.recv()
        self.process.join()
        return found


def measure(flags: argparse.Namespace, work: str, folder: Path) -> list[float]:
    """Both sides by turns; the ratio of theirs to each of ours, after a line about each."""
    ways = ["direct"] if work.startswith("train") else ["direct", "nnpack"]
    names = (["theirs"] if flags.peer else []) + ways
    sizes = (flags.size, flags.batch_size, flags.threads)
    sides = [Side(Job(name, work, flags.peer, folder, *sizes)) for name in names]
    for _ in range(flags.rounds + 1):  # the first warms up
        for side in sides:
            side.work()
    found = {side.name: (statistics.median(side.seconds[1:]), *side.stop()) for side in sides}
    ratios = []
    for name, (seconds, peak, result) in found.items():
        line = f"{work}, {name}: {seconds:.3f} s, peak {peak:.2f} GiB"
        if flags.peer and name != "theirs":
            their_seconds, their_peak, theirs = found["theirs"]
            ratios.append(their_seconds / seconds)
            line += f"; ratio {ratios[-1]:.2f}, of memory {their_peak / peak:.2f}"
            if theirs is not None and result is not None:
                line += f"; {agreement(theirs, result)}"
        print(line, flush=True)
    return ratios


def agreement(theirs: np.ndarray, ours: np.ndarray) -> str:
    if theirs.dtype == np.float32:
        return f"pixels differ by at most {np.abs(theirs - ours).max():.1e}"
    return f"{100 * (theirs == ours).mean():.2f} % of the codes equal"


def write_weights(peer: Path | None, folder: Path) -> None:
    """The same weights for both sides; random, with a codebook that the latents use."""
    torch.manual_seed(0)
    if peer is None:
        from tokenizer import build_tokenizer

        save_tokenizer(folder / "model", build_tokenizer("imagenet-f16-1024"))
        return
    theirs = Theirs(peer)
    with torch.no_grad():
        latents = theirs.quant_conv(theirs.encoder(pictures(4, 256))).movedim(1, -1).flatten(0, 2)
        theirs.quantize.embedding.weight.copy_(latents)
    torch.save(theirs.state_dict(), folder / "theirs.pt")
    config, tensors = import_compvis(theirs.state_dict())
    ours = VQGAN(config)
    ours.load_state_dict(tensors)
    save_tokenizer(folder / "model", ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of taming-transformers")
    parser.add_argument(
        "--what", nargs="+", default=["encode", "decode", "train before", "train after"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1, help="of training")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_weights(flags.peer, Path(temporary))
        best = {work: measure(flags, work, Path(temporary)) for work in flags.what}
    for work, ratios in best.items():
        if ratios:
            print(f"{work} ratio {max(ratios):.2f}")


if __name__ == "__main__":
    main()
