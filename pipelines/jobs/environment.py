"""The device, precision and torch version that results depend on: what a run computes with, and
whether that is what the results were begun with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ops.precision import Precision, check_precision, on_device, resolve_precision
from ops.runtime import named_device
from pipelines.flags import Accept

#: What --accept allows to differ from what the results were begun with, by the setting's name.
ACCEPTABLE = {"device": "device", "precision": "precision", "torch": "torch-version"}


def accepted(accept: Accept, allow_mixed: bool) -> frozenset[str]:
    """The settings, names of ACCEPTABLE, that --accept and --allow-mixed let differ."""
    return frozenset(name for name, word in ACCEPTABLE.items() if allow_mixed or word in accept)


def choose_environment(
    device: str,
    precision: str,
    *,
    begun: Mapping[str, Any] | None,
    accept: frozenset[str],
    resolve: Callable[[str], str],
    gpu_precision: Precision,
) -> dict[str, str]:
    """The device, precision and torch version of a run, for the flags --device and --precision.

    "auto" is what the results were `begun` with, or for new ones what `resolve` finds and the
    `gpu_precision` on a GPU, float32 on a CPU. With the device in `accept`, "auto" is always the
    device that `resolve` finds. Raises ConfigError as `resolve` does, and for an unknown precision.
    """
    if begun is not None and device == "auto" and "device" not in accept:
        device = begun["device"]
    elif begun is None or device == "auto":
        device = resolve(device)
    kind = named_device(device).type
    if precision == "auto" and begun is not None:
        precision = precision_of(begun)
    wanted = resolve_precision(precision, kind, gpu_precision)
    return {"device": device, "precision": wanted, "torch": torch.__version__}


def precision_of(begun: Mapping[str, Any]) -> Precision:
    """The precision that results were begun with."""
    # Before it was recorded, torch's own default was used: TF32 in a GPU's convolutions.
    default = on_device("tf32", torch.device(begun["device"]).type)
    return check_precision(begun.get("precision", default))


def differing_environment(
    begun: Mapping[str, Any], chosen: Mapping[str, str], accept: frozenset[str]
) -> dict[str, tuple[str, str]]:
    """(begun, chosen) of what differs and is not in `accept`, by name.

    A device that is accepted brings the precision that is the nearest there.
    """
    kinds = [torch.device(each["device"]).type for each in (begun, chosen)]
    precision = precision_of(begun)
    if "device" in accept:
        precision = on_device(precision, kinds[1])
    was = {"device": kinds[0], "precision": precision, "torch": begun.get("torch")}
    found = {"device": kinds[1], "precision": chosen["precision"], "torch": chosen["torch"]}
    return {
        name: (str(was[name]), value)
        for name, value in found.items()
        if name not in accept and was[name] is not None and was[name] != value
    }


def how_to_accept(differing: Sequence[str]) -> str:
    """The sentence that names --accept for settings that differ, names of ACCEPTABLE."""
    words = " ".join(ACCEPTABLE[name] for name in differing)
    return (
        f"--accept {words} goes on with these all the same, and what is made so is recorded; "
        "--allow-mixed accepts any."
    )
