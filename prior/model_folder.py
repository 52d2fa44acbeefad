"""Loading and saving priors: bundled ones, model folders and run folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ops.checkpoint import (
    CheckpointError,
    config_errors_explained,
    described,
    described_config,
    holds_model,
    read_description,
    resolve_model_folder,
    save_model,
    weights_file,
)
from ops.config import from_json, to_json
from ops.meta_device import on_meta_device
from ops.object_paths import AnyPath, ObjectPath
from ops.runtime import resolve_device
from ops.stored_models import local_model, model_path, stored_model
from ops.tensor_files import load_weights
from prior.conditions import Conditions
from prior.models import (
    ARCHITECTURES,
    PriorConfig,
    PriorModel,
    architecture_name,
    check_conditions,
    make_model,
)
from prior.prior import Prior
from prior.sampling import SamplingSettings

MODEL_KIND = "prior"
MOST_DOWNSAMPLED = 1 << 16  # pixels to a side of a code
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class PriorDescription:
    """What a prior's config.json says; the fields are those of Prior."""

    folder: Path  # the model folder
    config: PriorConfig
    conditions: Conditions
    tokenizer_info: Mapping[str, Any]
    recommended: Mapping[str, Any]  # of SamplingSettings


def bundled_priors() -> list[str]:
    """Names of the priors that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def find_prior(name_or_folder: str | AnyPath) -> AnyPath:
    """`name_or_folder` itself where that exists, or else the folder of a bundled prior.

    In an object store it is the model folder: of a run, that of its newest step now.

    A folder that has a bundled prior's name, but no prior in it, does not hide that one. Raises
    CheckpointError where there is neither.
    """
    found = model_path(name_or_folder)
    if isinstance(found, ObjectPath):
        return stored_model(found)
    path = Path(found)
    if str(path) in bundled_priors() and not holds_model(path):
        return WEIGHTS / path
    if path.exists():
        return path
    raise CheckpointError(
        f"No prior {str(name_or_folder)!r}: neither a folder nor one of the bundled "
        f"({', '.join(bundled_priors()) or 'none'})."
    )


def save_prior(
    folder: Path,
    model: PriorModel,
    conditions: Conditions,
    tokenizer_info: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    recommended: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a prior's config.json and model.safetensors into `folder`; the caller makes it atomic.

    `tokenizer_info` has the `name`, `fingerprint`, `codebook_size` and `downsample_factor` of the
    tokenizer of its codes. `tensors` replace the model's own state dict, which is incomplete when
    the model is sharded. `recommended` are values of SamplingSettings.
    """
    extra = {
        "architecture": architecture_name(model.config),
        "conditions": conditions.to_json(),
        "tokenizer": dict(tokenizer_info),
    }
    if recommended:
        extra["sampling"] = dict(recommended)
    tensors = model.state_dict() if tensors is None else tensors
    save_model(folder, MODEL_KIND, to_json(model.config), tensors, extra)


def describe_prior(name_or_folder: str | AnyPath) -> PriorDescription:
    """What load_prior would load, from config.json alone; raises CheckpointError as it does."""
    where = find_prior(name_or_folder)
    folder = local_model(where) if isinstance(where, ObjectPath) else resolve_model_folder(where)
    description = read_description(folder, MODEL_KIND)
    architecture = described(folder, description, "architecture", str)
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{folder} holds a prior of the architecture {architecture!r}; known are "
            f"{', '.join(ARCHITECTURES)}. Upgrade smalti."
        )
    config: PriorConfig = described_config(folder, description, ARCHITECTURES[architecture].config)
    with config_errors_explained(folder):
        parts = described(folder, description, "conditions", list)
        conditions = Conditions.from_json(parts, config.codebook_size)
        check_conditions(config, conditions)
        recommended = described(folder, {"sampling": {}, **description}, "sampling", dict)
        from_json(SamplingSettings, recommended)
    return PriorDescription(
        folder=folder,
        config=config,
        conditions=conditions,
        tokenizer_info=_tokenizer_info(folder, description, config.codebook_size),
        recommended=recommended,
    )


def load_prior(name_or_folder: str | AnyPath, device: str | torch.device = "cpu") -> Prior:
    """A bundled prior, that of a model folder, or of a run folder's newest step.

    It is in eval mode on `device`. A folder in an object store, also as text (`s3://...`), is
    copied to a local cache first.

    Uses the averaged weights, `ema.safetensors`, where the folder has them.
    Raises CheckpointError when the folder holds no prior, or an invalid one: config.json, weights
    and conditions must fit each other, and weights be finite.
    """
    about = describe_prior(name_or_folder)
    with on_meta_device():  # takes no memory: the config is not trusted yet
        outline = make_model(about.config)
    tensors = load_weights(weights_file(about.folder), outline)
    model = make_model(about.config)
    model.load_state_dict(tensors)
    model = model.to(resolve_device(str(device))).eval()
    return Prior(model, about.conditions, about.tokenizer_info, about.folder, about.recommended)


def _tokenizer_info(
    folder: Path, description: Mapping[str, Any], codebook_size: int
) -> dict[str, Any]:
    """What config.json says of the tokenizer; raises CheckpointError where that is not valid."""
    info = described(folder, description, "tokenizer", dict)
    described(folder, info, "name", str)
    described(folder, info, "fingerprint", str)
    if described(folder, info, "codebook_size", int) != codebook_size:
        raise CheckpointError(
            f"{folder / 'config.json'}: the tokenizer has {info['codebook_size']} codes, the "
            f"prior {codebook_size}. Restore it from a copy."
        )
    if not 1 <= described(folder, info, "downsample_factor", int) <= MOST_DOWNSAMPLED:
        raise CheckpointError(
            f"{folder / 'config.json'}: downsample_factor is {info['downsample_factor']}. Restore "
            "it from a copy."
        )
    return dict(info)
