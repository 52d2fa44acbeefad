"""Copies of a prior for sampling: their precision, and linear layers packed for the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ops.cpu import pack_linear
from ops.meta_device import on_meta_device
from ops.precision import Precision
from prior.models import PriorModel, make_model


def inference_copy(model: PriorModel, precision: Precision = "float32") -> PriorModel:
    """The same model in eval mode, without gradients, its linear layers packed where possible.

    In bfloat16 its weights are copies in that type, but for the head's, which stay in float32, as
    logits do. In the other precisions the weights are shared with `model`, except packed ones.
    Later changes of the model's weights do not reach copies.
    """
    with on_meta_device():
        copy = make_model(model.config)
    copy.load_state_dict(model.state_dict(), assign=True)
    if precision == "bfloat16":
        for part in copy.children():
            part.to(torch.float32 if part is copy.head else torch.bfloat16)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, pack_linear(child))
    return copy.requires_grad_(False).eval()


class InferenceCopies:
    """Keeps the inference copy of a model, made again when weights or precision have changed.

    A change through `.data` of a parameter is not noticed.
    """

    def __init__(self) -> None:
        self._weights: list[tuple[Tensor, int]] | None = None
        self._precision: Precision | None = None
        self._copy: PriorModel | None = None

    def of(self, model: PriorModel, precision: Precision = "float32") -> PriorModel:
        """The inference copy of a model as it is now."""
        weights = _versions(model)
        if (
            self._copy is None
            or weights is None
            or precision != self._precision
            or not _are_same(weights, self._weights)
        ):
            self._copy = inference_copy(model, precision)
        self._weights, self._precision = weights, precision
        return self._copy


def _versions(model: PriorModel) -> list[tuple[Tensor, int]] | None:
    """The weights and how often each was changed in place; None where torch does not count it."""
    weights = [tensor.detach() for tensor in model.state_dict(keep_vars=True).values()]
    if any(tensor.is_inference() for tensor in weights):
        return None
    # The tensors are held, so that no other tensor gets their memory.
    return [(tensor, tensor._version) for tensor in weights]


def _are_same(weights: list[tuple[Tensor, int]], before: list[tuple[Tensor, int]] | None) -> bool:
    return before is not None and [_identity(*one) for one in weights] == [
        _identity(*one) for one in before
    ]


def _identity(tensor: Tensor, version: int) -> tuple[int, torch.dtype, int]:
    return tensor.data_ptr(), tensor.dtype, version
