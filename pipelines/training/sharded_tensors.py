"""Tensors whose rows lie on several processes: copies for a checkpoint, files, and loading them.

FSDP2 gives each process a run of equally many rows of every parameter, the last ones fewer or none.
Each process writes its rows of the optimizer's state as a safetensors file that says which rows
they are; any number of processes can read them again. No tensor is ever whole on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ops.config import parse_json
from ops.files import fsync_path
from ops.ranks import Ranks
from ops.tensor_files import CheckpointError, TensorFile, open_tensors, save_tensors
from pipelines.training.checkpoint_writer import cpu_copies
from pipelines.training.optimizer import own_part

#: Entry of a file's metadata: {"NAME": {"saved_offsets": [first row, 0, ...]}}. It is also what
#: torch.distributed.checkpoint.HuggingFaceStorageReader looks for.
OFFSETS = "DCP_SHARDING_INFO"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, shaped as the parameter


class Part(NamedTuple):
    """This process's rows of a tensor, on the CPU."""

    rows: Tensor
    shape: torch.Size  # of the whole tensor
    first: int  # the number of the first row
    sharded: bool


def copied_parts(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Copies of this process's parts of tensors, which later changes do not reach."""
    copies = cpu_copies({name: own_part(tensor) for name, tensor in tensors.items()})
    return {
        name: Part(copies[name], tensor.shape, first_row(tensor), isinstance(tensor, DTensor))
        for name, tensor in tensors.items()
    }


def first_row(tensor: Tensor) -> int:
    """The number of the first row that this process holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh, rows = tensor.device_mesh, tensor.shape[0]
    return min(mesh.get_local_rank() * _rows_each(tensor.shape, mesh.size()), rows)


def _rows_each(shape: torch.Size, world: int) -> int:
    return -(-shape[0] // world)


def gather_parts(parts: Mapping[str, Part], ranks: Ranks) -> dict[str, Tensor]:
    """The whole tensors on rank 0, an empty dict on all others; a collective on CPU tensors."""
    whole: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensor = part.rows
        if part.sharded:
            each = _rows_each(part.shape, ranks.world)
            padded = tensor.new_zeros(each, *part.shape[1:])  # collectives need equal shapes
            padded[: len(tensor)] = tensor
            gathered = ranks.gather_to_first(padded)
            tensor = torch.cat(gathered)[: part.shape[0]] if gathered else tensor
        if ranks.is_first:
            whole[name] = tensor
    return whole


def optimizer_parts(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Part], dict[str, Tensor]]:
    """Copies of this process's part of AdamW's state by the names of `module`'s parameters:
    "NAME.exp_avg" and "NAME.exp_avg_sq", and the number of steps by NAME."""
    moments: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            steps[name] = state["step"]
            moments |= {f"{name}.{moment}": state[moment] for moment in MOMENTS}
    return copied_parts(moments), cpu_copies(steps)


def load_optimizer(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Mapping[str, Tensor],
) -> None:
    """Restore AdamW's state from the files of save_parts, and the numbers of steps by name.

    Raises CheckpointError where the files do not hold it all.
    """
    with SavedParts(folder) as saved:
        for name, parameter in module.named_parameters():
            if name not in steps:
                continue
            moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            for moment, tensor in moments.items():
                saved.read(f"{name}.{moment}", tensor)
            step = torch.as_tensor(steps[name], dtype=torch.float32)
            step = step.to(own_part(parameter).device, copy=True)
            optimizer.state[parameter] = {"step": step, **moments}


def save_parts(folder: Path, parts: Mapping[str, Part], ranks: Ranks) -> None:
    """Write this process's rows into `folder`, as optimizer-RANK-of-WORLD.safetensors, flushed."""
    path = folder / f"optimizer-{ranks.rank + 1:05d}-of-{ranks.world:05d}.safetensors"
    offsets = {
        name: {"saved_offsets": [part.first, *(0 for _ in part.shape[1:])]}
        for name, part in parts.items()
    }
    save_tensors(path, {n: part.rows for n, part in parts.items()}, {OFFSETS: json.dumps(offsets)})
    fsync_path(path)  # by the machine that wrote it


class SavedParts:
    """The files that save_parts wrote into a folder, opened in a `with` block.

    Raises CheckpointError where there is none, or one cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = ExitStack()
        self._places: dict[str, list[tuple[int, TensorFile]]] = {}

    def __enter__(self) -> SavedParts:
        paths = sorted(self.folder.glob("optimizer-*-of-*.safetensors"))
        if not paths:
            raise CheckpointError(
                f"{self.folder} has no optimizer-*.safetensors. Restore it from a copy."
            )
        with ExitStack() as files:
            for path in paths:
                file = files.enter_context(open_tensors(path))
                for name, first in _first_rows(path, file).items():
                    self._places.setdefault(name, []).append((first, file))
            self._files = files.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def read(self, name: str, target: Tensor) -> None:
        """Copy the rows of the tensor `name` that this process holds of `target` into it.

        Raises CheckpointError where the files do not have them all, or in another shape.
        """
        own, start = own_part(target), first_row(target)
        row, stop = start, start + len(own)
        for first, file in sorted(self._places.get(name, []), key=lambda place: place[0]):
            shape = file.header[name].shape
            if first > row or shape[1:] != tuple(target.shape[1:]):
                break
            until = min(stop, first + shape[0])
            if until > row:
                own[row - start : until - start].copy_(
                    file.get_rows(name, row - first, until - first)
                )
                row = until
        if row < stop:
            raise CheckpointError(
                f"The files optimizer-*.safetensors in {self.folder} do not hold all of "
                f"{name} as {tuple(target.shape)}. Restore the folder from a copy."
            )


def _first_rows(path: Path, file: TensorFile) -> dict[str, int]:
    """The number of the first row of each tensor in a file."""
    try:
        offsets = parse_json(file.metadata.get(OFFSETS, ""))
        return {name: int(offsets[name]["saved_offsets"][0]) for name in file.header}
    except (ValueError, TypeError, KeyError, IndexError):
        raise CheckpointError(
            f"{path} does not say which rows of the optimizer's state it holds. Restore it from a "
            "copy."
        ) from None
