"""Loading and saving tokenizers: bundled ones, model folders and run folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.checkpoint import (
    CheckpointError,
    described,
    described_config,
    read_description,
    resolve_model_folder,
    save_model,
    weights_file,
)
from ops.config import ConfigError, to_json
from ops.cpu import use_convolution
from ops.meta_device import on_meta_device
from ops.object_paths import AnyPath, ObjectPath
from ops.stored_models import local_model, model_path
from ops.tensor_files import load_weights
from tokenizer.modalities import ModalityConfig
from tokenizer.vqgan import PRESETS, VQGAN, VQGANConfig

KIND = "vqgan"
PHOTOGRAPHS = ModalityConfig()
WEIGHTS = Path(__file__).parent / "weights"


def bundled_tokenizers() -> list[str]:
    """Names of the tokenizers that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def build_tokenizer(preset: str, seed: int = 0, modality: ModalityConfig = PHOTOGRAPHS) -> VQGAN:
    """An untrained VQGAN of a preset, initialised from `seed`.

    Raises ConfigError for an unknown preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"No tokenizer preset {preset!r}; there are {', '.join(PRESETS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQGAN(PRESETS[preset].with_modality(modality), name=preset)


def load_tokenizer(
    name_or_folder: str | AnyPath, device: str | torch.device = "cpu", convolution: str = "direct"
) -> VQGAN:
    """A trained VQGAN, ready to encode and decode: in eval mode, float32.

    `name_or_folder` is a bundled name ("photo-f8"), a model folder, or a run folder, whose newest
    complete step is taken, with averaged weights if there are any; one in an object store, also as
    text (`s3://...`), is copied to a local cache first. `convolution` "nnpack" takes
    about half the time on a CPU and changes the last bits: see ops/cpu/convolution.py. Raises
    CheckpointError if there is no such tokenizer, if its config.json and weights are not of one
    network, or a weight is not finite; ConfigError if the convolution is unavailable.
    """
    folder = _find(name_or_folder)
    description = read_description(folder, KIND)
    config = described_config(folder, description, VQGANConfig)
    name = described(folder, {"name": folder.name, **description}, "name", str)
    with on_meta_device():  # takes no memory: the config is not trusted yet
        outline = VQGAN(config)
    tensors = load_weights(weights_file(folder), outline)
    model = VQGAN(config, name)
    model.load_state_dict(tensors)
    model.folder = folder
    model = model.eval().requires_grad_(False).to(device)
    use_convolution(model, convolution)
    return model


def save_tokenizer(
    folder: Path,
    model: VQGAN,
    *,
    half: bool = False,
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a VQGAN as a model folder; `half` stores float16, half the size.

    `tensors` replace the model's own state dict.

    Rounding to float16 changes the fingerprint: it is always that of what load_tokenizer returns.
    """
    stored = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in (tensors or model.state_dict()).items()
    }
    save_model(folder, KIND, to_json(model.config), stored, {"name": model.name, **(extra or {})})


def _find(name_or_folder: str | AnyPath) -> Path:
    name_or_folder = model_path(name_or_folder)
    if isinstance(name_or_folder, ObjectPath):
        return local_model(name_or_folder)
    if isinstance(name_or_folder, str) and name_or_folder in bundled_tokenizers():
        return WEIGHTS / name_or_folder
    if not Path(name_or_folder).exists():
        raise CheckpointError(
            f"No tokenizer {str(name_or_folder)!r}: neither a folder nor one of the bundled "
            f"({', '.join(bundled_tokenizers()) or 'none'})."
        )
    return resolve_model_folder(name_or_folder)
