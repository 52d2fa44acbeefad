"""The processes that train together, and what they tell each other, by torch.distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place, `rank`, among the `world` of those that train together.

    Every method is one for all: each of the processes must call it, in the same order.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of all processes' tensors, of one shape."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.world

    def first_says(self, value: T) -> T:
        """The first process's value, which pickle must be able to carry."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def average_gradients(self, module: nn.Module) -> None:
        """Replace the gradients of a module that nothing else keeps in step by their mean."""
        if self.world == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(self.mean(parameter.grad))


ALONE = Ranks()


def ranks_here() -> Ranks:
    """The place that torch.distributed gives this process; alone where it is not in use."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return ALONE


def all_samples(tensor: Tensor) -> Tensor:
    """Samples (B, ...) of all processes as (world * B, ...), in the order of the global batch.

    Rank r has the positions r, r + world, ... of that batch, and equally many as the others.
    """
    world = ranks_here().world
    if world == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


class _MeanOverRanks(torch.autograd.Function):
    """The mean is its own transpose: what comes back is the mean of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return ranks_here().mean(tensor.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return mean_over_ranks(gradients[0])


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of all processes' tensors, of one shape; gradients, also of gradients, pass.

    Each process goes backward from a loss of its own, as under DistributedDataParallel: what
    arrives at a tensor is the gradient of all their losses' sum. Alone, the tensor itself.
    """
    if ranks_here().world == 1:
        return tensor
    mean: Tensor = _MeanOverRanks.apply(tensor)
    return mean


def from_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, of the same shape, in place of this one's."""
    if ranks_here().world > 1:
        dist.broadcast(tensor, src=0)
    return tensor
