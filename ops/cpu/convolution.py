"""The autoencoder's 3x3 convolution, computed directly or by NNPACK on a CPU.

NNPACK, which torch's Linux builds include, convolves in a transformed domain (8x8 Winograd tiles,
16x16 Fourier tiles for larger images) in half the time or less. Its results differ from the direct
ones in the last bits and depend on where its tiles fall, so the tiles of a large image
(tokenizer/tiling.py) equal the whole only up to such bits. It is therefore used only when asked
for by name, and a code store records which method made its codes.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError

CONVOLUTIONS = ("direct", "nnpack")

# Measured: below 32x32 positions, or with few channels on both sides, NNPACK gains nothing.
MIN_POSITIONS = 32 * 32
MIN_CHANNELS = 48
# Input and output values of one convolution. NNPACK's workspace is about 1.3 times as large, for
# each thread: 700 MB at most.
MAX_VALUES = 1 << 27
TOLERANCE = 1e-3  # of the largest value: how far NNPACK may be from the direct result


class Convolution(nn.Conv2d):
    """3x3, stride 1, zero-padded: (B, C_in, H, W) -> (B, C_out, H, W); see convolve_3x3."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.method = "direct"

    def forward(self, x: Tensor) -> Tensor:
        return convolve_3x3(x, self.weight, self.bias, self.method)


def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    """x (B, C_in, H, W) convolved with weight (C_out, C_in, 3, 3), zero-padded.

    By NNPACK if `method` is "nnpack" and x is float32 on a CPU, needs no gradient and is of a size
    at which NNPACK is faster; else by F.conv2d.
    """
    if method != "nnpack" or not _is_supported(x, weight):
        return F.conv2d(x, weight, bias, padding=1)
    # One image at a time: for a batch NNPACK takes a slower path, and an image's result must not
    # depend on the others.
    images = [torch._nnpack_spatial_convolution(image, weight, bias, 1) for image in x.split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


def _is_supported(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    positions, channels = x.shape[-2] * x.shape[-1], weight.shape[:2]
    return (
        len(x) > 0
        and positions >= MIN_POSITIONS
        and max(channels) >= MIN_CHANNELS
        and positions * sum(channels) <= MAX_VALUES
    )


def use_convolution(model: nn.Module, method: str) -> None:
    """Set the method of every Convolution of `model`, and the memory layout it is fastest in.

    Raises ConfigError for an unknown method, or for "nnpack" where nnpack_works() is false.
    """
    if method not in CONVOLUTIONS:
        raise ConfigError(f"No convolution {method!r}; there are {', '.join(CONVOLUTIONS)}.")
    if method == "nnpack" and not nnpack_works():
        raise ConfigError(
            f"No NNPACK convolutions here: torch {torch.__version__} is built without them or does "
            "not support this processor. A code store begun with NNPACK can only be continued "
            "where it is available; a new one can use direct convolutions."
        )
    for module in model.modules():
        if isinstance(module, Convolution):
            module.method = method
    nnpack = method == "nnpack"
    model.to(memory_format=torch.contiguous_format if nnpack else torch.channels_last)


@functools.cache
def nnpack_works() -> bool:
    """Whether torch has NNPACK for this processor, and its results are right."""
    # Private names of torch: another version may lack them or change what they do.
    if not hasattr(torch, "_nnpack_spatial_convolution") or not torch._nnpack_available():
        return False
    # NNPACK's thread pool gets torch's thread count at its first call. One: otherwise threads that
    # convolve concurrently, as in encode, would wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return all(_agrees(side) for side in (32, 64))  # Winograd, Fourier
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _agrees(side: int) -> bool:
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(1, 16, side, side, generator=generator)
    weight, bias = torch.randn(16, 16, 3, 3, generator=generator), torch.ones(16)
    direct = F.conv2d(x, weight, bias, padding=1)
    difference = torch._nnpack_spatial_convolution(x, weight, bias, 1) - direct
    return bool(difference.abs().max() <= TOLERANCE * direct.abs().max())
