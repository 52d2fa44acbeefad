"""State dicts from published checkpoint files, read without executing anything in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.checkpoint import CheckpointError, load_tensors

# Keys under which training checkpoints keep the weights, averaged ones first.
WEIGHTS = ("ema", "state_dict", "model")
# Starts of the lines that torch adds to its error; one advises to disable weights_only.
ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation")


class Ignored:
    """Replaces every other pickled object (callbacks, settings) and holds nothing."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .ckpt, .pt, .pth or .bin written by torch.save.

    From a training checkpoint the weights are taken, the averaged ones if there are any. No class
    or function that the file names is imported. Raises CheckpointError if the file cannot be read
    or holds no named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file.")
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
        raise CheckpointError(f"{path} holds no named tensors. Is it a model's weights?")
    return found


def _unpickle(path: Path) -> object:
    """What torch.save wrote, with every class but torch's own replaced by Ignored."""
    foreign: list[str] = []
    try:
        if zipfile.is_zipfile(path):  # they cannot be listed in torch's older format
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        replacements: list[Any] = [(type("Ignored", (Ignored,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(replacements):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, TypeError) as error:
        lines = [line for line in str(error).splitlines() if line and not line.startswith(ADVICE)]
        reason = lines[0] if lines else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from None
