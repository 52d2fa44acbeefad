"""Data-parallel and fully sharded training of a module over several processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ops.ranks import ALONE, Ranks

#: For torch.distributed.checkpoint's get_*_state_dict: whole tensors on rank 0's CPU, empty dicts
#: on all other ranks.
GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
#: For set_*_state_dict: whole tensors, equal on every rank, of which each rank keeps its shard.
SCATTER = StateDictOptions(full_state_dict=True)
#: The same, but the tensors are rank 0's alone.
BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How steps are computed: affects speed, memory and rounding, nothing else."""

    ranks: Ranks = ALONE
    accumulate: int = 1
    """micro-batches that a process splits its part of a batch into"""
    compile: bool = False
    recompute: bool = False
    """activation checkpointing: recompute activations in the backward pass to save memory"""
    shard: bool = False
    """shard weights, gradients and optimizer over the processes (FSDP), to fit larger models"""


SINGLE_PROCESS = ParallelConfig()  # whole batches


def wrap_ddp(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """`module` under DistributedDataParallel: gradients are means over `ranks`.

    Rank 0's weights are broadcast. With one process, the module itself.
    """
    if ranks.world == 1:
        return module
    own = [torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=own, gradient_as_bucket_view=True)


def no_sync(module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
    """Where `enabled`, backward accumulates gradients without averaging them over the ranks."""
    if enabled and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def shard(
    module: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, device: torch.device
) -> None:
    """Shard the weights over all processes (FSDP2), gathered while `module` is called.

    Each of its `blocks` is gathered on its own, one after the other. Make optimizers and weight
    averages afterwards. Gradients are means over the ranks, as with `wrap_ddp`.
    """
    mesh = init_device_mesh(device.type, (ranks.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def gather_weights(module: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on rank 0's CPU, an empty one on all other ranks; a collective.

    Tensors that are neither sharded nor on a GPU are the module's own, not copies.
    """
    tensors: dict[str, Any] = get_model_state_dict(module, options=GATHER)
    return tensors


def scatter_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], options: StateDictOptions = SCATTER
) -> None:
    """Load a whole state dict, of which each rank keeps its shard; a collective."""
    set_model_state_dict(module, dict(tensors), options=options)
