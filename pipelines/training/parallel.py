"""How a module's training is shared among processes: copies kept in step, or parts of one copy."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ops.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How steps are computed, which changes nothing about them but speed, memory and rounding."""

    ranks: Ranks = ALONE
    accumulate: int = 1
    """parts that a process goes through its share of a batch in"""
    compile: bool = False
    recompute: bool = False
    """compute activations again for the backward pass instead of keeping them: less memory"""
    shard: bool = False
    """part the weights among the processes, too: for models beyond one card"""


AS_IS = ParallelConfig()  # one process, whole batches


def wrap_ddp(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """What to call in training instead of `module`, so that gradients are means over `ranks`.

    The first process's weights become everybody's. Alone, it is the module itself.
    """
    if ranks.world == 1:
        return module
    own = [torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=own, gradient_as_bucket_view=True)


def no_sync(module: nn.Module, held: bool) -> AbstractContextManager[Any]:
    """While `held`, forward and backward add to this process's gradients and tell nobody."""
    if held and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def shard(
    module: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, device: torch.device
) -> None:
    """Part the weights among all processes; they come together while `module` is called.

    Those of each of its `blocks` do so by themselves, one after the other. Optimizers and averages
    must be made afterwards. Gradients come out as means, as with `in_step`.
    """
    mesh = init_device_mesh(device.type, (ranks.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
