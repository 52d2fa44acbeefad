"""HostFree: a mode that records torch's operations and forbids those that wait for a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations whose result, or its shape, the host must know, and those that take the host's data.
FORBIDDEN = {
    "_local_scalar_dense", "nonzero", "nonzero_static", "is_nonzero", "equal", "masked_select",
    "_unique2", "unique_dim", "repeat_interleave", "lift_fresh", "lift_fresh_copy", "scalar_tensor",
}  # fmt: skip


class HostFree(TorchDispatchMode):
    """Records each operation with the shapes of its tensors, composite ones by their parts.

    Raises AssertionError for an operation that is forbidden, for indexing by a mask, whose result
    has an unknown shape, and for tensors on more than one device.
    """

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in FORBIDDEN, name
        with self:  # in inference mode, composite operations arrive here as they are
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        tensors = [part for part in flat(args) if isinstance(part, torch.Tensor)]
        if name.startswith("index") and "put" not in name:
            assert all(part.dtype != torch.bool for part in tensors[1:]), name
        if name == "_to_copy":
            assert kwargs.get("device") is None, name
        # A tensor of no dimensions on the CPU is a number, which kernels take as an argument.
        assert len({part.device for part in tensors if part.ndim}) <= 1, name
        self.operations.append((name, tuple(tuple(part.shape) for part in tensors)))
        return func(*args, **kwargs)


def flat(parts):
    for part in parts:
        if isinstance(part, list | tuple):
            yield from flat(part)
        else:
            yield part
