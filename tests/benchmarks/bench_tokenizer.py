"""Encoding, decoding and training steps of the paper's f16 network, against the published code.

    python tests/benchmarks/bench_tokenizer.py [--peer CHECKOUT] [--what encode decode ...]

CHECKOUT is a checkout of taming-transformers whose tokenizer modules can be imported: see
compvis_peer.py. The sides are separate processes that take turns with the same weights, images and
number of threads. Encoding and decoding process one image at a time. The peer runs eagerly without
gradients; ours as load_tokenizer returns it, with direct convolutions and with NNPACK. Training is
without LPIPS on both sides, and is measured before the discriminator starts and after: the peer
does what its trainer does, two forwards and both optimizers' steps in either case. Prints medians
over the rounds, each side's peak memory, and the ratio of the peer's time to each of ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from compvis_peer import import_peer
from PIL import Image
from side_process import GIB, Side
from torch import Tensor, nn

from ops.images import to_pixels
from ops.runtime import keep_freed_memory
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.recipe import TokenizerRecipe
from pipelines.training.tokenizer_task import TokenizerTask
from tokenizer import PRESETS, VQGAN, load_tokenizer, save_tokenizer
from tokenizer.importers import import_compvis
from tokenizer.losses import LossConfig

PRESET = "imagenet-f16-1024"
NETWORK: dict[str, Any] = {
    "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": (16,), "dropout": 0.0,
    "in_channels": 3, "out_ch": 3, "resolution": 256, "z_channels": 256, "double_z": False,
}  # fmt: skip
RATE, NEVER = 4.5e-6, 10**9


class Job(NamedTuple):
    """What one side does, again and again."""

    side: str  # "peer", "direct" or "nnpack"
    work: str  # "encode", "decode", and "train before" or "train after" the discriminator starts
    peer: Path | None
    folder: Path  # of the weights
    channels: int
    size: int
    batch_size: int


def make_pixels(count: int, size: int) -> Tensor:
    """Smooth shapes and noise, which resemble photographs: pixels (count, 3, size, size)."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8))
        image = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(float)
        images.append((image + random.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8))
    return to_pixels(np.stack(images))


class Peer(nn.Module):
    """The peer's modules combined as in its VQModel, without its training framework."""

    def __init__(self, checkout: Path, channels: int, discriminator_start: int = NEVER) -> None:
        super().__init__()
        model = import_peer(checkout, "taming.modules.diffusionmodules.model")
        quantize = import_peer(checkout, "taming.modules.vqvae.quantize")
        losses = import_peer(checkout, "taming.modules.losses.vqperceptual")
        losses.LPIPS = nn.Identity  # unused, and it would download its weights
        self.encoder = model.Encoder(ch=channels, **NETWORK)
        self.decoder = model.Decoder(ch=channels, **NETWORK)
        self.quantize = quantize.VectorQuantizer2(1024, 256, beta=0.25)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 1)
        self.loss = losses.VQLPIPSWithDiscriminator(
            disc_start=discriminator_start, disc_weight=0.8, perceptual_weight=0.0
        )
        discriminator = list(self.loss.discriminator.parameters())
        of_discriminator = {id(parameter) for parameter in discriminator}
        others = [p for p in self.parameters() if id(p) not in of_discriminator]
        self.groups = [others, discriminator]
        self.optimizers = [torch.optim.Adam(g, lr=RATE, betas=(0.5, 0.9)) for g in self.groups]

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents, loss, (_, _, codes) = self.quantize(self.quant_conv(self.encoder(pixels)))
        return latents, loss, codes

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def train_step(self, pixels: Tensor, step: int) -> None:
        for index, optimizer in enumerate(self.optimizers):
            for number, parameters in enumerate(self.groups):
                for parameter in parameters:
                    parameter.requires_grad_(number == index)
            latents, quantizer_loss, _ = self.encode(pixels)
            loss, _ = self.loss(
                quantizer_loss, pixels, self.decode(latents), index, step,
                last_layer=self.decoder.conv_out.weight, split="train",
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def make_work(job: Job) -> Callable[[int], Any]:
    """The function of the step number that does a job; codes and pixels are numpy arrays."""
    return peer_work(job) if job.side == "peer" else our_work(job)


def peer_work(job: Job) -> Callable[[int], Any]:
    assert job.peer is not None
    start = 0 if job.work == "train after" else NEVER
    model, pixels = Peer(job.peer, job.channels, start), make_pixels(job.batch_size, job.size)
    model.load_state_dict(torch.load(job.folder / "peer.pt"), strict=False)
    if job.work.startswith("train"):
        return lambda step: model.train().train_step(pixels, step)
    model.eval()
    with torch.no_grad():
        latents = model.encode(pixels[:1])[0]
    encode = torch.no_grad()(lambda step: model.encode(pixels[:1])[2].numpy())
    decode = torch.no_grad()(lambda step: model.decode(latents).numpy())
    return encode if job.work == "encode" else decode


def our_work(job: Job) -> Callable[[int], Any]:
    keep_freed_memory()  # as the commands do
    pixels = make_pixels(job.batch_size, job.size)
    if job.work.startswith("train"):
        train_task = our_task(job)
        return lambda step: len(train_task.train_step(pixels, step))
    model = load_tokenizer(job.folder / "model", convolution=job.side)
    with torch.inference_mode():
        codes = model.encode(pixels[:1])
    encode = torch.inference_mode()(lambda step: model.encode(pixels[:1]).flatten().numpy())
    decode = torch.inference_mode()(lambda step: model.decode(codes).numpy())
    return encode if job.work == "encode" else decode


def our_task(job: Job) -> TokenizerTask:
    start = 0 if job.work == "train after" else NEVER
    optimizer = OptimizerConfig(learning_rate=RATE, betas=(0.5, 0.9), schedule="constant")
    recipe = TokenizerRecipe(
        preset=PRESET,
        losses=LossConfig(perceptual="none", adversarial_start=start, adversarial_ramp=1),
        optimizer=optimizer,
        discriminator_optimizer=optimizer,
        batch_size=job.batch_size,
        crop_size=job.size,
    )
    model = VQGAN(load_tokenizer(job.folder / "model").config)
    model.load_state_dict(load_tokenizer(job.folder / "model").state_dict())
    return TokenizerTask(model, recipe, 2 * NEVER, torch.empty(0), torch.device("cpu"))


def measure(flags: argparse.Namespace, work: str, folder: Path) -> list[float]:
    """All sides by turns; prints a line for each, returns the ratios of the peer's time to ours."""
    kinds = ["direct"] if work.startswith("train") else ["direct", "nnpack"]
    names = (["peer"] if flags.peer else []) + kinds
    sizes = (flags.channels, flags.size, flags.batch_size)
    sides = {}
    for name in names:
        job = Job(name, work, flags.peer, folder, *sizes)
        sides[name] = Side(partial(make_work, job), flags.threads, flags.in_process)
    for _ in range(flags.rounds + 1):  # the first one warms up
        for side in sides.values():
            side.run()
    found = {
        name: (statistics.median(side.seconds[1:]), side.stop()) for name, side in sides.items()
    }
    ratios = []
    for name, (seconds, finished) in found.items():
        line = f"{work}, {name}: {seconds:.3f} s, peak {finished.peak / GIB:.2f} GiB"
        if flags.peer and name != "peer":
            peer_seconds, peer = found["peer"]
            ratios.append(peer_seconds / seconds)
            line += f"; ratio {ratios[-1]:.2f}, of memory {peer.peak / finished.peak:.2f}"
            if not work.startswith("train"):
                line += f"; {agreement(peer.result, finished.result)}"
        print(line, flush=True)
    return ratios


def agreement(peer: np.ndarray, ours: np.ndarray) -> str:
    if peer.dtype == np.float32:
        return f"pixels differ by at most {np.abs(peer - ours).max():.1e}"
    return f"{100 * (peer == ours).mean():.2f} % of the codes equal"


def write_weights(flags: argparse.Namespace, folder: Path) -> None:
    """Write the same random weights for both sides, with a codebook that the latents use."""
    torch.manual_seed(0)
    if flags.peer is None:
        preset = PRESETS[PRESET]
        autoencoder = dataclasses.replace(preset.autoencoder, channels=flags.channels)
        save_tokenizer(
            folder / "model", VQGAN(dataclasses.replace(preset, autoencoder=autoencoder))
        )
        return
    peer = Peer(flags.peer, flags.channels)
    with torch.no_grad():
        latents = peer.quant_conv(peer.encoder(make_pixels(4, 256))).movedim(1, -1).flatten(0, 2)
        peer.quantize.embedding.weight.copy_(latents)
    torch.save(peer.state_dict(), folder / "peer.pt")
    config, tensors = import_compvis(peer.state_dict())
    ours = VQGAN(config)
    ours.load_state_dict(tensors)
    save_tokenizer(folder / "model", ours)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of taming-transformers")
    parser.add_argument(
        "--what", nargs="+", default=["encode", "decode", "train before", "train after"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=128, help="of the network's first level")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of an image")
    parser.add_argument("--batch-size", type=int, default=1, help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--in-process", action="store_true", help="all sides in this process: for tests"
    )
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        write_weights(flags, Path(temporary))
        found = {work: measure(flags, work, Path(temporary)) for work in flags.what}
    for work, ratios in found.items():
        if ratios:
            print(f"{work} ratio {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
