"""State dicts from published checkpoint files, read without executing anything in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.tensor_files import (
    CheckpointError,
    check_memory,
    load_state,
    load_tensors,
    open_state,
    unreadable,
)
from ops.text import printable

# Keys under which training checkpoints keep the weights, averaged ones first.
WEIGHTS = (
    "ema", "ema_state_dict", "state_dict_ema", "state_dict", "model_state_dict", "model", "module",
    "params", "net", "weights",
)  # fmt: skip
#: Names that torch's wrappers put into keys: compiled, sharded and checkpointed modules.
WRAPPERS = re.compile(r"(?<![^.])_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
#: Of a wrapper, DataParallel say, or of a training class around the model.
OUTER = ("module", "model", "net", "ema", "ema_model", "vqgan", "vqvae", "vae", "tokenizer")
DEPTH = 3  # of the mappings that are searched for weights


class Ignored:
    """Replaces every other pickled object (callbacks, settings) and holds nothing."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .ckpt, .pt, .pth or .bin written by torch.save.

    From a training checkpoint the weights are taken, the averaged ones if there are any, and keys
    are freed of what DataParallel, torch.compile and training classes put before them. No class or
    function that the file names is imported. Raises CheckpointError if the file cannot be read or
    holds no named tensors, or one that is not plain: sparse, quantized, or larger than what is
    stored of it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file.")
    if path.suffix == ".safetensors":
        return unwrapped(path, load_tensors(path))
    content = _unpickle(path)
    for _ in range(DEPTH):
        inside = [name for name in WEIGHTS if _has_tensors(content, name)]
        if not inside:
            break
        content = content[inside[0]]
    tensors = content if isinstance(content, Mapping) else {}
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not found:
        elsewhere = [repr(key) for key in tensors if _has_tensors(tensors, key)]
        hint = f" There are tensors under {', '.join(elsewhere[:5])}." if elsewhere else ""
        raise CheckpointError(
            f"{path} holds no named tensors. Is it a model's weights?{printable(hint)}"
        )
    return unwrapped(path, {key: _plain(path, key, value) for key, value in found.items()})


def _has_tensors(content: Any, name: object) -> bool:
    """Whether the entry `name` is a mapping that has a tensor, or has such mappings."""
    inside = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(inside, Mapping):
        return False
    return any(isinstance(value, Tensor) for value in inside.values()) or any(
        isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())
        for value in inside.values()
    )


def unwrapped(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the keys that the model itself has; raises CheckpointError."""
    freed = {key: WRAPPERS.sub("", key) for key in tensors}
    while (outer := _outer(freed.values())) is not None:
        freed = {key: name.removeprefix(outer) for key, name in freed.items()}
    found: dict[str, Tensor] = {}
    for key, name in freed.items():
        if name in found:
            raise CheckpointError(
                f"{path} holds {printable(name, 100)} twice, once as {printable(key, 100)}. Which "
                "one to take is not known: save the one state dict that is meant."
            )
        found[name] = tensors[key]
    return found


def _outer(keys: Any) -> str | None:
    """The name in OUTER, with its dot, that all keys begin with."""
    first = {key.partition(".")[0] if "." in key else "" for key in keys}
    (name,) = first if len(first) == 1 else ("",)
    return f"{name}." if name in OUTER else None


def _plain(path: Path, key: object, tensor: Tensor) -> Tensor:
    """A tensor of a checkpoint without gradient or attributes; raises CheckpointError."""
    shown = f"{path}: {printable(key, 100)}"
    if not isinstance(key, str):
        raise CheckpointError(f"{shown}: tensors must have names, not numbers, as their keys.")
    reason = _oddity(tensor)
    if reason is not None:
        raise CheckpointError(f"{shown} {reason}. Save plain, dense tensors on the CPU.")
    return Tensor.detach(tensor)  # of a Parameter a tensor, and without attributes from the file


def _oddity(tensor: Tensor) -> str | None:
    """Why a tensor cannot be weights; None where it can."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"is of the class {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "is sparse or nested"
    if tensor.is_quantized or tensor.is_complex():
        return f"has the type {tensor.dtype}"
    if tensor.device.type != "cpu":
        return f"lies on the device {tensor.device.type}, so it has no values"
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        return f"has {tensor.numel():,} values, of which only {stored:,} bytes are stored"
    return None


def _unpickle(path: Path) -> Any:
    """What torch.save wrote, with every class but torch's own replaced by Ignored."""
    return load_state(path, ignored=[(type("Ignored", (Ignored,), {}), n) for n in _foreign(path)])


def _foreign(path: Path) -> list[str]:
    """Names of the classes in a checkpoint that torch does not read.

    Raises CheckpointError where it cannot be read, or unpacks to more than fits into memory.
    """
    with open_state(path) as file:
        try:
            if not zipfile.is_zipfile(file):  # they cannot be listed in torch's older format
                return []
            unpacked = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
            file.seek(0)
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        except Exception as error:  # a parser of foreign bytes raises what it likes
            raise CheckpointError(unreadable(path, error)) from None
    check_memory(path, unpacked)
    return names
