"""The autoencoder's 3x3 convolution, and a second way to compute it on a CPU.

NNPACK, which torch's Linux builds carry, convolves in a transformed domain (Winograd's 8x8 tiles,
16x16 Fourier tiles for larger images) and needs half the time or less. Its results differ from the
direct ones in the last bits, and where its tiles fall depends on an image's corner: tiles of a
large image (tokenizer/tiling.py) then agree with the whole up to such bits only. So it is asked
for by name, and whoever keeps codes records which way made them.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError

CONVOLUTIONS = ("direct", "nnpack")

# Measured: below 32x32 positions, or with few channels on both sides, NNPACK gains nothing.
LEAST_POSITIONS = 32 * 32
LEAST_CHANNELS = 48
# Values in and out of one convolution. NNPACK's workspace is about 1.3 times as large and each
# thread keeps its own: 700 MB at most.
MOST_VALUES = 1 << 27
TOLERANCE = 1e-3


class Convolution(nn.Conv2d):
    """3x3, stride 1, padded with zeros: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.method = "direct"

    def forward(self, x: Tensor) -> Tensor:
        if self.method == "direct" or not self._gains(x):
            return super().forward(x)
        # One image at a time: a batch takes NNPACK a slower way, and what comes of an image
        # cannot depend on its neighbours.
        images = [
            torch._nnpack_spatial_convolution(image, self.weight, self.bias, 1)
            for image in x.split(1)
        ]
        return images[0] if len(images) == 1 else torch.cat(images)

    def _gains(self, x: Tensor) -> bool:
        """Whether NNPACK can compute this and is worth it; it is not for training."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return False
        positions, channels = x.shape[-2] * x.shape[-1], self.in_channels + self.out_channels
        return (
            len(x) > 0
            and positions >= LEAST_POSITIONS
            and max(self.in_channels, self.out_channels) >= LEAST_CHANNELS
            and positions * channels <= MOST_VALUES
        )


def use_convolution(model: nn.Module, method: str) -> None:
    """Make every Convolution of `model` compute by `method`, in the memory layout it is fast in.

    Raises ConfigError for an unknown method, and for NNPACK where this machine has none.
    """
    if method not in CONVOLUTIONS:
        raise ConfigError(f"No convolution {method!r}; there are {', '.join(CONVOLUTIONS)}.")
    if method == "nnpack" and not nnpack_works():
        raise ConfigError(
            f"No NNPACK convolutions here: torch {torch.__version__} is built without them or does "
            "not know this processor. Codes begun with them can only go on where they are; "
            "anything new can use direct ones."
        )
    for module in model.modules():
        if isinstance(module, Convolution):
            module.method = method
    nnpack = method == "nnpack"
    model.to(memory_format=torch.contiguous_format if nnpack else torch.channels_last)


@functools.cache
def nnpack_works() -> bool:
    """Whether torch has NNPACK for this processor, and it computes what it should."""
    # Private names of torch: another version may lack them, or mean something else by them.
    if not hasattr(torch, "_nnpack_spatial_convolution") or not torch._nnpack_available():
        return False
    # NNPACK keeps as many threads as torch has at its first call. One: threads that convolve side
    # by side, as encode's do, would wait for each other to use more.
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
