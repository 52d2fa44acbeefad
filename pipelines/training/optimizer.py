"""Learning-rate schedule, parameter groups and averaged weights of both train tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ops.config import ConfigError, Range, Share, check_fields
from ops.ranks import ALONE, Ranks
from pipelines.flags import LearningRate

Beta = Annotated[float, Range(least=0, below=1)]
AVERAGED_TOGETHER = 32  # tensors, whose differences are in memory at once


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then a cosine or a constant learning rate."""

    learning_rate: LearningRate = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: Annotated[float, Range(least=0, most=100)] = 0.0
    warmup_steps: Annotated[int, Range(least=0)] = 100
    schedule: str = "cosine"
    final_share: Share = 0.03
    """the cosine ends at this share of `learning_rate`"""
    max_gradient_norm: Annotated[float, Range(above=0, most=1e6)] = 1.0
    ema_decay: Share = 0.999

    def __post_init__(self) -> None:
        check_fields(self)
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"schedule must be cosine or constant, found {self.schedule!r}.")

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`; from `steps` on, the last one."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return self.learning_rate * warm
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
        return self.learning_rate * warm * (self.final_share + (1 - self.final_share) * cosine)


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only: no biases, gains or embeddings."""
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,  # one pass over each weight instead of about twelve
    )


class Gradients(NamedTuple):
    """What compute_gradients found; both are scalars that still lie on the device."""

    norm: Tensor  # before clipping
    finite: Tensor  # bool, equal in all processes: whether the loss and the norm are finite in each


def take_step(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    rate: float,
    max_gradient_norm: float,
    ranks: Ranks = ALONE,
) -> Gradients:
    """One step at learning rate `rate` on the sum of `losses`, with clipped gradients.

    Where the gradients are not finite, the weights and the optimizer's state stay as they are.
    """
    gradients = compute_gradients(optimizer, losses, max_gradient_norm, ranks)
    apply_gradients(optimizer, rate, gradients.finite)
    return gradients


def compute_gradients(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    max_gradient_norm: float,
    ranks: Ranks = ALONE,
) -> Gradients:
    """Leave the clipped gradients of the sum of `losses` in the optimizer's parameters.

    Each loss is backpropagated before the next is drawn, so one graph is in memory at a time; code
    at the end of a generator runs before clipping. Nothing here waits for a GPU.
    """
    optimizer.zero_grad(set_to_none=True)
    totals: list[Tensor] = []
    for loss in losses:
        torch.autograd.backward(loss)
        totals.append(loss.detach().float())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    found = torch.stack([*totals, norm.float().to(totals[0].device)])
    return Gradients(norm, ranks.mean(found.isfinite().all().float()) == 1)


def apply_gradients(optimizer: torch.optim.Optimizer, rate: float, finite: Tensor) -> None:
    """The fused optimizer's step at learning rate `rate`, where the scalar `finite` is true.

    It reads `finite` on the device, as torch.amp.GradScaler has it do.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    fused: Any = optimizer  # its step reads attributes that no class declares
    fused.grad_scale, fused.found_inf = None, (~finite).float()
    try:
        fused.step()
    finally:
        del fused.grad_scale, fused.found_inf


class WeightAverage:
    """Exponential moving average of a module's floating-point tensors; others are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int, finite: Tensor | None = None) -> None:
        """Average in the module's weights, where the scalar `finite` is true or None.

        Early steps use a smaller decay, min(decay, (step + 1) / (step + 20)), so that the untrained
        weights lose their influence sooner. Nothing here waits for a GPU.
        """
        share: Tensor | float = 1 - min(self.decay, (step + 1) / (step + 20))
        if finite is not None:
            share = share * finite.float()
        live = module.state_dict()
        pairs = [(own_part(a), own_part(live[name])) for name, a in self.tensors.items()]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        # Few fused calls: on GPUs, hundreds of small kernels would be bound by their launches.
        for first in range(0, len(moving), AVERAGED_TOGETHER):
            averages, weights = zip(*moving[first : first + AVERAGED_TOGETHER], strict=True)
            changes = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(changes, share)
            torch._foreach_add_(averages, changes)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averages to `tensors`, by name."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)


@contextmanager
def evaluating(model: nn.Module, averages: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, `model` is in eval mode with its averaged weights and without gradients.

    The two are exchanged tensor by tensor, which takes little memory: `averages` hold the weights
    meanwhile.
    """
    live, training = model.state_dict(), model.training
    _exchange(live, averages)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        _exchange(live, averages)
        model.train(training)


@torch.no_grad()
def _exchange(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Exchange the values of two state dicts."""
    for name, tensor in tensors.items():
        one, other = own_part(tensor), own_part(others[name])
        value = one.clone()
        one.copy_(other)
        other.copy_(value)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, which shares its memory; of others, the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
