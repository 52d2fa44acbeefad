"""Estimates of a training run, made without training: sizes, steps per epoch, memory, FLOP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.training.recipe import PriorRecipe, TokenizerRecipe
from prior import PriorConfig, PriorModel, make_model
from tokenizer import VQGAN, VQGANConfig

Model = TypeVar("Model", bound=nn.Module)
FLOAT32 = 4  # bytes of each weight, gradient and optimizer entry


@dataclass(frozen=True, kw_only=True)
class Division:
    """How batches are divided among processes and micro-batches, and how they are computed."""

    workers: int
    accumulate: int
    shard: bool
    recompute: bool
    bfloat16: bool
    """activations in bfloat16, as on GPUs"""

    def micro_batch(self, batch_size: int) -> int:
        """Samples that one process computes at once."""
        return batch_size // (self.workers * self.accumulate)


def describe_prior(
    config: PriorConfig, recipe: PriorRecipe, images: int, held_out: int, division: Division
) -> list[str]:
    """Lines of text on a prior's run that trains on `images` images."""
    codes, size = config.window**2, recipe.batch_size
    loss = _prior_loss(config, division.micro_batch(size), division.recompute)
    model, activations = _without_values(lambda: make_model(config), loss, division.bfloat16)
    sequence = config.sequence_length
    return [
        _parameter_line(model),
        f"a step      {size} windows of {config.window}x{config.window}: {size * codes:,} codes, "
        f"{size * sequence:,} tokens{_divided(size, division)}",
        _epoch_line(images, held_out, size, recipe.steps),
        _memory_line(_count(model), activations, division),
    ]


def describe_tokenizer(
    recipe: TokenizerRecipe, images: int | None, held_out: int, division: Division
) -> list[str]:
    """Lines of text on a tokenizer's run that trains on `images` images; None: nobody knows."""
    config, side, size = recipe.config, recipe.crop_size, recipe.batch_size
    loss = _tokenizer_loss(config, side, division.micro_batch(size), division.recompute)
    model, activations = _without_values(lambda: VQGAN(config), loss, division.bfloat16)
    codes = (side // config.downsample_factor) ** 2
    return [
        _parameter_line(model),
        f"a step      {size} crops of {side}x{side} pixels: {size * codes:,} codes"
        f"{_divided(size, division)}",
        _epoch_line(images, held_out, size, recipe.steps),
        _memory_line(_count(model), activations, division),
        "            without the discriminator and the perceptual loss",
    ]


def prior_flop(config: PriorConfig) -> int:
    """FLOP of a training step on one window: forward and backward, nothing computed twice."""
    return _count_flop(lambda: make_model(config), _prior_loss(config, 1, recompute=False))


def tokenizer_flop(config: VQGANConfig, side: int) -> int:
    """The same on one crop, without the discriminator and the perceptual loss."""
    loss = _tokenizer_loss(config, side, 1, recompute=False)
    return _count_flop(lambda: VQGAN(config), loss)


def _count_flop(make: Callable[[], Model], loss: Callable[[Model], Tensor]) -> int:
    counter = FlopCounterMode(display=False)
    # Attention by plain matrix products: the counter does not know the fused kernel of CPUs.
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), counter:
        torch.autograd.backward(loss(make()))
    return int(counter.get_total_flops())


def _prior_loss(config: PriorConfig, size: int, recompute: bool) -> Callable[[PriorModel], Tensor]:
    """The loss of a model of `config` on `size` windows."""
    # A local prior adds its condition grids to the codes: they are not in condition_length.
    grids = getattr(config, "condition_grids", 0) * config.window**2
    tokens = torch.zeros(size, config.condition_length + grids, dtype=torch.int64)
    grid = torch.zeros(size, config.window, config.window, dtype=torch.int64)

    def loss(model: PriorModel) -> Tensor:
        model.recompute_activations = recompute
        return model.nll(tokens, grid).mean()

    return loss


def _tokenizer_loss(
    config: VQGANConfig, side: int, size: int, recompute: bool
) -> Callable[[VQGAN], Tensor]:
    """A loss of a VQGAN of `config` on `size` crops."""
    pixels = torch.zeros(size, config.autoencoder.image_channels, side, side)

    def loss(model: VQGAN) -> Tensor:
        for part in (model.encoder, model.decoder):
            part.blocks.recompute = recompute
        result = model.eval()(pixels)  # in training mode the codebook would read values
        total: Tensor = result.pixels.abs().mean() + result.quantizer_loss
        return total

    return loss


def _without_values(
    make: Callable[[], Model], loss: Callable[[Model], Tensor], bfloat16: bool
) -> tuple[Model, int]:
    """A model of fake tensors, and the bytes that its forward pass saves for the backward pass."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    casting: AbstractContextManager[object] = (
        torch.autocast("cpu", dtype=torch.bfloat16) if bfloat16 else nullcontext()
    )
    with FakeTensorMode(allow_non_fake_inputs=True), casting:
        model = make()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(model)
    storages = {s._cdata: s.nbytes() for s in (tensor.untyped_storage() for tensor in kept)}
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage()._cdata, None)
    return model, sum(storages.values())


def _parameter_line(model: nn.Module) -> str:
    parts = {name: _count(part) for name, part in model.named_children()}
    listed = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
    return f"parameters  {_count(model):,}: {listed}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _divided(batch_size: int, division: Division) -> str:
    if division.workers * division.accumulate == 1:
        return ""
    each = division.micro_batch(batch_size)
    parts = [(division.workers, "process", "es"), (division.accumulate, "micro-batch", "es")]
    named = " x ".join(f"{n} {word}{plural if n > 1 else ''}" for n, word, plural in parts)
    return f"; {named} of {each}"


def _epoch_line(images: int | None, held_out: int, batch_size: int, steps: int) -> str:
    if images is None:
        return f"an epoch    of unknown length: tars are streamed; {steps:,} steps"
    per_epoch = images / batch_size
    return (
        f"an epoch    {per_epoch:,.1f} steps: {images:,} images to train on, {held_out:,} held "
        f"out; {steps:,} steps are {steps / per_epoch:,.2f} epochs"
    )


def _memory_line(parameters: int, activations: int, division: Division) -> str:
    each = parameters * FLOAT32 / (division.workers if division.shard else 1)
    parts = {
        "weights": each,
        "gradients": each,
        "AdamW": 2 * each,
        "averaged weights": each,
        "activations, roughly": float(activations),
    }
    listed = ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    return f"memory      {_bytes(sum(parts.values()))} per process: {listed}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
