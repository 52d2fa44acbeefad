"""Modes that fail where the host would wait for a GPU, and a pretended GPU to run code on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations whose result, or its shape, the host must know. (multinomial checks its weights.)
READS = {
    "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_static",
    "masked_select", "bincount", "multinomial", "_unique", "_unique2", "unique_dim",
    "unique_dim_consecutive", "unique_consecutive",
}  # fmt: skip
#: Methods and functions that read a tensor's values. On CPUs most of them are no operation.
READING = {
    "cpu", "numpy", "tolist", "item", "__array__", "__bool__", "__float__", "__int__", "__index__",
}  # fmt: skip
#: Functions that make tensors of the host's values; on a given device they copy and wait.
MAKING = {"tensor", "as_tensor", "asarray", "new_tensor"}


class DeviceSyncError(AssertionError):
    """Something that makes the host wait for a GPU, or copies what could be made on it."""


@contextmanager
def no_device_syncs() -> Iterator[list[tuple[str, tuple[tuple[int, ...], ...]]]]:
    """Raise DeviceSyncError for what would make the host wait if the tensors were on a GPU.

    That is: reading values (item, tolist, cpu, numpy, a tensor as a condition or an index); results
    whose shape depends on values (nonzero, unique, bincount, indexing by a mask, repeat_interleave
    without output_size); copies to another device, unless non_blocking; tensors of the host's
    values, but for numbers that stay on the host; and operations on tensors of several devices.

    Returns the operations so far, each with the shapes of its tensors, composite ones by their
    parts.
    """
    operations = _Operations()
    with _Calls(), operations:
        yield operations.found


@contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """Tensors made inside have a shape, a dtype and a device, but no values; so no GPU is needed.

    Returns the device of a GPU. Any operation may run on it, and fails for tensors that are on
    different devices.
    """
    with FakeTensorMode():
        yield torch.device("cuda", 0)


class _Calls(TorchFunctionMode):
    """Forbids calls of torch's Python functions, of which CPUs run no operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READING and args and isinstance(args[0], Tensor):
            raise DeviceSyncError(name)
        if name in MAKING and (kwargs.get("device") is not None or name == "new_tensor"):
            raise DeviceSyncError(f"{name}(..., device)")
        if name == "to" and not kwargs.get("non_blocking") and _names_device(args[1:], kwargs):
            raise DeviceSyncError("to(device) without non_blocking")
        return func(*args, **kwargs)


def _names_device(args, kwargs):
    return any(isinstance(part, torch.device | str) for part in [*args, kwargs.get("device")])


class _Operations(TorchDispatchMode):
    """Forbids operations, and records the others."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            raise DeviceSyncError(name)
        if func.namespace == "aten":
            with self:  # in inference mode, composite operations arrive here as they are
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensors = [part for part in _flat(args) if isinstance(part, Tensor)]
        _check_operands(name, tensors, args, kwargs)
        self.found.append((name, tuple(tuple(part.shape) for part in tensors)))
        return func(*args, **kwargs)


def _check_operands(name, tensors, args, kwargs):
    if name in ("lift_fresh", "lift_fresh_copy") and tensors[0].ndim:
        raise DeviceSyncError("a tensor of the host's values")
    by_mask = name.startswith("index") and any(part.dtype == torch.bool for part in tensors[1:])
    # Writing one number where a mask is true needs no positions.
    if by_mask and not ("put" in name and args[2].numel() == 1):
        raise DeviceSyncError(f"{name} by a mask")
    target = kwargs.get("device") if name == "_to_copy" else None
    if target is not None and target != tensors[0].device and not kwargs.get("non_blocking"):
        raise DeviceSyncError(f"a copy to {target} without non_blocking")
    if name == "copy_" and tensors[0].device != tensors[1].device:
        if tensors[1].ndim and not any(part is True for part in (*args[2:], *kwargs.values())):
            raise DeviceSyncError("copy_ from another device")
    # A tensor of no dimensions on the CPU is a number, which kernels take as an argument.
    elif len({part.device for part in tensors if part.ndim}) > 1:
        raise DeviceSyncError(f"{name} of tensors on several devices")


def _flat(parts):
    for part in parts:
        if isinstance(part, list | tuple):
            yield from _flat(part)
        else:
            yield part
