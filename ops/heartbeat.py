"""Heartbeat: counts steps of work, so that another thread sees whether any is done."""

from __future__ import annotations

from typing import Any

from torch import nn


class Heartbeat:
    """`steps` grows as long as there is work done; how much each is worth means nothing."""

    def __init__(self) -> None:
        self.steps = 0

    def beat(self, *_: Any) -> None:
        """Count a step. Threads may do it at once: a step that is lost does not matter."""
        self.steps += 1

    def follow(self, model: nn.Module) -> None:
        """Count every layer of an eager model that is computed."""
        for module in model.modules():
            module.register_forward_hook(self.beat)
