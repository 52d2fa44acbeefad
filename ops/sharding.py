"""Tensors that several processes hold a part of each (torch's DTensor): made whole, and parted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gather_full(value: Any, keep: bool = True) -> Any:
    """`value` with every DTensor in its dicts and lists made a whole tensor on the CPU.

    Every process must ask at once; one that does not `keep` them gets None in their place, and
    needs no memory for them. Other things stay as they are.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if keep else None
    if isinstance(value, dict):
        return {key: gather_full(entry, keep) for key, entry in value.items()}
    if isinstance(value, list):
        return [gather_full(entry, keep) for entry in value]
    return value


def parted_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal in all processes, parted among them as `like` is, if it is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def parted_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state_dict, its moments parted as the parameters they belong to."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {
            name: parted_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": moments}
