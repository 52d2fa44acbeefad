"""The highest rates of GPUs in bfloat16, and the share of them that training uses."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Dense bfloat16 FLOP/s with float32 sums, by words of the name that CUDA gives a GPU, the first
#: that fit. From NVIDIA's data sheets of each product, which for Hopper, Ada and Blackwell name the
#: rate with sparsity, twice this; of the GeForce cards from the Ada architecture's white paper.
PEAKS = (
    (("B200",), 2250e12),
    (("GH200",), 989e12),
    (("H200", "NVL"), 835e12),
    (("H200",), 989e12),
    (("H100", "NVL"), 835e12),
    (("H100", "PCIe"), 756e12),
    (("H100",), 989e12),
    (("A100",), 312e12),
    (("A40",), 149.7e12),
    (("L40S",), 362e12),
    (("L40",), 181e12),
    (("L4",), 121e12),
    (("RTX", "4090"), 165.2e12),
    (("RTX", "3090"), 71e12),
)


def peak_rate(device_name: str) -> float | None:
    """The highest dense bfloat16 rate, in FLOP/s, of the GPU of that name; None for others."""
    words = set(device_name.replace("-", " ").split())
    return next((rate for wanted, rate in PEAKS if words.issuperset(wanted)), None)


def device_name(device: torch.device) -> str:
    """The name that CUDA gives a GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_share(
    flop: Callable[[], int], steps_per_second: float, device: torch.device, world: int
) -> float | None:
    """The share of the highest bfloat16 rate of `world` devices that steps of `flop()` FLOP use.

    None where the device's rate is unknown; then `flop` is not called.
    """
    peak = peak_rate(device_name(device))
    return None if peak is None else flop() * steps_per_second / (peak * world)
