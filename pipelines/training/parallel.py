"""Data-parallel and fully sharded training of a module over several processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ops.precision import Precision
from ops.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How steps are computed: affects speed, memory and rounding, nothing else."""

    ranks: Ranks = ALONE
    accumulate: int = 1
    """micro-batches that a process splits its part of a batch into"""
    compile: bool = False
    recompute: bool = False
    """activation checkpointing: recompute activations in the backward pass to save memory"""
    precision: Precision = "float32"
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


@contextmanager
def no_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Where `enabled`, backward accumulates gradients without averaging them over the ranks."""
    if enabled and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    elif enabled and isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)
    else:
        yield


def shard(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    ranks: Ranks,
    device: torch.device,
    precision: Precision,
) -> None:
    """Shard the weights over all processes (FSDP2), gathered while `module` is called.

    Each of its `blocks` is gathered on its own, one after the other; in bfloat16, where `precision`
    is that, while gradients are summed in float32. What is in no block, as embeddings, is gathered
    in float32, and the inputs of blocks stay in it: the sums that residual connections make. Make
    optimizers and weight averages afterwards. Gradients are means over the ranks, as with
    `wrap_ddp`.
    """
    mesh = init_device_mesh(device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh)


@contextmanager
def resharded(module: nn.Module) -> Iterator[None]:
    """After the body, no weights stay gathered: without a backward pass, FSDP keeps the last ones,
    and would not notice when the shards change."""
    try:
        yield
    finally:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def scatter_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a whole state dict, equal in every process, of which each keeps its part."""
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(module, dict(tensors), options=options)
