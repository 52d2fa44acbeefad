"""The precision that computations run in: a recorded choice, never torch's default."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch

from ops.config import ConfigError

#: float32: exact products. tf32: float32 whose products a GPU rounds to 10 bits of mantissa (the
#: same as float32 on a CPU). bfloat16: products of 8 bits in bfloat16, sums in float32.
Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def check_precision(name: str) -> Precision:
    """`name` as a Precision; raises ConfigError for others."""
    for precision in PRECISIONS:
        if name == precision:
            return precision
    raise ConfigError(f"No precision {name!r}; there are {', '.join(PRECISIONS)}.")


def on_device(precision: Precision, device_type: str) -> Precision:
    """What a precision amounts to on a "cuda" or "cpu" device: a CPU has no TF32."""
    return "float32" if precision == "tf32" and device_type == "cpu" else precision


def resolve_precision(name: str, device_type: str, on_gpu: Precision = "bfloat16") -> Precision:
    """What the precision `name` amounts to on a "cuda" or "cpu" device.

    "auto" is `on_gpu` on a GPU, else float32. Raises ConfigError for other names.
    """
    if name == "auto":
        return on_gpu if device_type == "cuda" else "float32"
    return on_device(check_precision(name), device_type)


def use_precision(precision: Precision) -> None:
    """Make products of float32 tensors use TF32 on GPUs, or not, in the whole process.

    torch lets cuDNN's convolutions use it by default; here it is used only where it is asked for.
    """
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast on `device` where the precision is bfloat16, else nothing."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """Exact products of float32 tensors in the body, whatever the precision around it."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
