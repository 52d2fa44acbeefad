"""State dicts in files that others made: tensors are read, and nothing in them is run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.checkpoint import CheckpointError, load_tensors

# Under which name trainers keep the weights among other things, the averaged ones first.
WEIGHTS = ("ema", "state_dict", "model")
# How the lines begin that torch puts around its reason: one says to run whatever the file holds.
ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation")


class Unread:
    """Stands for whatever else a training run pickled (callbacks, settings): it holds nothing."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .ckpt, .pt, .pth or .bin written by torch.save.

    Of a trainer's checkpoint the weights are taken, the averaged ones where there are any. No
    class or function that the file names is imported. Raises CheckpointError where it cannot be
    read or holds no tensors by name.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file.")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    content = _unpickle(path)
    for name in WEIGHTS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = content if isinstance(content, Mapping) else {}
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not found:
        raise CheckpointError(f"{path} holds no tensors by name. Is it a model's weights?")
    return found


def _unpickle(path: Path) -> object:
    """What torch.save wrote, every class but torch's own replaced by Unread."""
    foreign: list[str] = []
    try:
        if zipfile.is_zipfile(path):  # in torch's older format they cannot be listed
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stands_in: list[Any] = [(type("Unread", (Unread,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(stands_in):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, TypeError) as error:
        lines = [line for line in str(error).splitlines() if line and not line.startswith(ADVICE)]
        reason = lines[0] if lines else type(error).__name__
        raise CheckpointError(f"{path} is no checkpoint that can be read: {reason}") from None
