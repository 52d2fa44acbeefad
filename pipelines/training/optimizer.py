"""Learning-rate schedule, parameter groups and averaged weights of both train tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ops.config import ConfigError, Range, Share, check_fields
from ops.ranks import ALONE, Ranks

LearningRate = Annotated[float, Range(above=0, most=100)]
Beta = Annotated[float, Range(least=0, below=1)]


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


class NonFiniteError(Exception):
    """A loss or a gradient norm that is not finite; the weights are as before the step.

    `own` is whether this process's part of the batch has it: all processes raise it together.
    """

    def __init__(self, what: str, value: float, own: bool) -> None:
        super().__init__(f"the {what} is {value}")
        self.what, self.value, self.own = what, value, own


def take_step(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    rate: float,
    max_gradient_norm: float,
    ranks: Ranks = ALONE,
) -> Tensor:
    """One step at learning rate `rate` on the sum of `losses`, with clipped gradients.

    Returns the gradient's norm before clipping, a scalar. Raises NonFiniteError instead of changing
    the weights.
    """
    norm = compute_gradients(optimizer, losses, max_gradient_norm, ranks)
    apply_gradients(optimizer, rate)
    return norm


def compute_gradients(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    max_gradient_norm: float,
    ranks: Ranks = ALONE,
    prefix: str = "",
) -> Tensor:
    """The clipped gradients of the sum of `losses`; returns their norm before, a scalar.

    Each loss is backpropagated before the next is drawn, so one graph is in memory at a time; code
    at the end of a generator runs before clipping. Raises NonFiniteError on all `ranks` where one
    has a loss, or all have a norm, that is not finite; `prefix` goes before its name.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for loss in losses:
        torch.autograd.backward(loss)
        total = total.to(loss.device) + loss.detach().float()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    found = torch.stack([total, norm.float().to(total.device)]).cpu()  # waits for a GPU
    for name, value in zip(("loss", "gradient norm"), ranks.mean(found).tolist(), strict=True):
        if not math.isfinite(value):
            own = not bool(found.isfinite().all())
            raise NonFiniteError(f"{prefix}{name}", value, own)
    return norm


def apply_gradients(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The optimizer's step at learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


class WeightAverage:
    """Exponential moving average of a module's floating-point tensors; others are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Average in the module's weights. Early steps use a smaller decay, min(decay, (step + 1) /
        (step + 20)), so that the untrained weights lose their influence sooner."""
        decay = min(self.decay, (step + 1) / (step + 20))
        live = module.state_dict()
        moving = [name for name, average in self.tensors.items() if average.is_floating_point()]
        # One fused call: on GPUs, hundreds of small kernels would be bound by their launches.
        torch._foreach_lerp_(
            [self.tensors[name] for name in moving], [live[name] for name in moving], 1 - decay
        )
        for name in self.tensors.keys() - moving:
            self.tensors[name].copy_(live[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averages to `tensors`, by name."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)


@contextmanager
def evaluating(model: nn.Module, averages: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, `model` is in eval mode with its averaged weights and without gradients."""
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = model.training
    model.load_state_dict(averages)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.load_state_dict(live)
        model.train(training)
