"""Learning-rate schedule, parameter groups and averaged weights, for both trainers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ops.config import ConfigError
from ops.sharding import gather_full


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then a cosine or a constant rate."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: str = "cosine"
    final_share: float = 0.03
    """the cosine ends at this share of the rate"""
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"schedule must be cosine or constant, found {self.schedule!r}.")

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return self.learning_rate * warm
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
        return self.learning_rate * warm * (self.final_share + (1 - self.final_share) * cosine)


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only: no biases, gains or embeddings."""
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
        fused=True,  # one pass over each weight instead of a dozen
    )


def take_step(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    rate: float,
    max_gradient_norm: float,
) -> Tensor:
    """Step at learning rate `rate` down the sum of `losses`, its gradient clipped.

    Each loss goes backward before the next is asked for, so one graph is in memory at a time; what
    the iterable does at its end still comes before the clipping. Returns the gradient's norm
    before clipping.
    """
    optimizer.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return gather_full(norm)


class WeightAverage:
    """An exponential moving average of a module's floating tensors; the rest is copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's weights; early steps move faster, or the start would linger."""
        decay = min(self.decay, (step + 1) / (step + 20))
        live = module.state_dict()
        moving = [name for name, average in self.tensors.items() if average.is_floating_point()]
        # All at once: on GPUs hundreds of small calls would take longer than what they do.
        torch._foreach_lerp_(
            [self.tensors[name] for name in moving], [live[name] for name in moving], 1 - decay
        )
        for name in self.tensors.keys() - moving:
            self.tensors[name].copy_(live[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)


@contextmanager
def evaluating(model: nn.Module, averages: Mapping[str, Tensor]) -> Iterator[None]:
    """The model in eval mode with its averaged weights, put back afterwards."""
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
