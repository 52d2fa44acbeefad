"""The processes that train together, and the collectives they need, by torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's `rank` among the `world` processes that train together.

    Every method is a collective: each of the processes must call it, in the same order. `group` is
    the processes' group of torch.distributed, None for the default one.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def for_thread(self) -> Ranks:
        """The same processes, whose collectives on CPU tensors may run in another thread meanwhile.

        Collectives of one group must not be called by two threads: their order would be undefined.
        """
        if self.world == 1:
            return self
        return Ranks(self.rank, self.world, dist.new_group(backend="gloo"))

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of all processes' tensors, of one shape."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.world

    def broadcast(self, value: T) -> T:
        """Rank 0's value, which must be picklable."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return flag if self.world == 1 else bool(self.mean(torch.tensor(float(flag))) > 0)

    def gather(self, value: T) -> list[T]:
        """All processes' values, which must be picklable, by rank."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return cast(list[T], values)

    def gather_to_first(self, tensor: Tensor) -> list[Tensor]:
        """All processes' tensors, of one shape, by rank on rank 0; an empty list on the others."""
        if self.world == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world)] if self.is_first else None
        dist.gather(tensor, parts, dst=0, group=self.group)
        return parts or []

    @contextmanager
    def errors_shared(self) -> Iterator[None]:
        """Raise an exception of the body in all processes: each one's own, or that of another.

        The body may call collectives only where all processes call them before any of them fails.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # raised below
            error = raised
        errors = self.gather(error)
        error = error or next((other for other in errors if other is not None), None)
        if error is not None:
            raise error

    def average_gradients(self, module: nn.Module) -> None:
        """Replace gradients by their mean over all processes, for a module outside of DDP."""
        if self.world == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(self.mean(parameter.grad))


ALONE = Ranks()


def ranks_here() -> Ranks:
    """This process's rank by torch.distributed; ALONE where that is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return ALONE


def all_samples(tensor: Tensor) -> Tensor:
    """Samples (B, ...) of all processes as (world * B, ...), in the order of the global batch.

    Rank r holds positions r, r + world, ... of that batch, and as many as every other rank.
    """
    world = ranks_here().world
    if world == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


class _MeanOverRanks(torch.autograd.Function):
    """The mean is its own transpose: its gradient is the mean of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return ranks_here().mean(tensor.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return mean_over_ranks(gradients[0])


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of all processes' tensors, of one shape, differentiable more than once.

    Each process runs backward from its own loss, as under DistributedDataParallel: the gradient
    that arrives at a tensor is that of the sum of all their losses. Alone, the tensor itself.
    """
    if ranks_here().world == 1:
        return tensor
    mean: Tensor = _MeanOverRanks.apply(tensor)
    return mean


def from_first(tensor: Tensor) -> Tensor:
    """Rank 0's tensor, written into this one, of the same shape."""
    if ranks_here().world > 1:
        dist.broadcast(tensor, src=0)
    return tensor
