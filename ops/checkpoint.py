"""Model folders and step folders of training runs.

A model folder is `config.json` + `model.safetensors`; loading it unpickles nothing. A run folder
holds step folders `step-00010000/`, each a model folder with `ema.safetensors` and
`train_state.pt` added.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ops.config import UserError
from ops.files import json_hash, write_json

#: Increased whenever older model folders cannot be read: 2 since configs have `modality`.
FORMAT = 2
STEP_FOLDER = re.compile(r"step-(\d{8})")
STEP_FILES = ("config.json", "model.safetensors", "train_state.pt")
HELD_OUT = "held_out.json"  # in a step folder: {"loss": its loss on held-out samples}


class CheckpointError(UserError):
    """A model or run folder that cannot be used."""


def save_model(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors into `folder`, created if missing.

    Not atomic by itself: pass the partial folder of ops.files.atomic_path. `kind` must be repeated
    to load_model; `extra` adds top-level entries to config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {"format": FORMAT, "kind": kind, "config": dict(config), **(extra or {})}
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
    save_tensors(folder / "model.safetensors", tensors)


def load_model(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The whole config.json and the tensors of a model folder.

    Raises CheckpointError where a file is missing or corrupt, or the model is of another kind.
    """
    description = read_description(folder)
    if description.get("kind") != kind:
        raise CheckpointError(
            f"{folder} holds a {description.get('kind')!r}, not a {kind!r}. Name a {kind} folder."
        )
    return description, load_tensors(folder / "model.safetensors")


def read_description(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder; raises CheckpointError where it cannot be read."""
    path = folder / "config.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no model folder: it has no config.json.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Restore it from a copy.") from None
    if not isinstance(description, dict):
        raise CheckpointError(f"{path} holds no JSON object. Restore it from a copy.")
    found = description.get("format", 1)
    if found > FORMAT:
        raise CheckpointError(f"{path} is of a newer format than {FORMAT}. Upgrade smalti.")
    if found < FORMAT:
        raise CheckpointError(
            f"{path} was written by an older version of Smalti (format {found}, this one reads "
            f"{FORMAT}). Train or import the model again."
        )
    return description


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, contiguous and on the CPU."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path)
    path.chmod(0o644)  # safetensors makes it readable by its owner only; folders are often shared


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises CheckpointError where it cannot be read."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Restore it from a copy.") from None


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that change when the config or a bit of any tensor changes."""
    digest = hashlib.sha256(json_hash(dict(config)).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def step_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return run / f"step-{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """The complete step folders of a run, oldest first."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if STEP_FOLDER.fullmatch(path.name)]
    return sorted(path for path in found if all((path / name).is_file() for name in STEP_FILES))


def step_of(folder: Path) -> int:
    """The step number in a step folder's name."""
    return int(folder.name.removeprefix("step-"))


def newest_step(run: Path) -> Path | None:
    """The newest complete step folder of a run, or None: where to resume."""
    folders = step_folders(run)
    return folders[-1] if folders else None


def write_held_out(folder: Path, loss: float) -> None:
    """Write the held-out loss of a checkpoint into its folder; lower is better."""
    write_json(folder / HELD_OUT, {"loss": loss})


def held_out_of(folder: Path) -> float:
    """The loss that write_held_out wrote; infinite where none was measured."""
    path = folder / HELD_OUT
    return float(json.loads(path.read_text())["loss"]) if path.is_file() else math.inf


def best_step(run: Path) -> Path | None:
    """The complete step folder with the lowest held-out loss, the oldest of a tie; or None."""
    measured = [folder for folder in step_folders(run) if math.isfinite(held_out_of(folder))]
    return min(measured, key=held_out_of) if measured else None


def prune_steps(run: Path, keep: int) -> None:
    """Remove all step folders except the newest `keep` and the best, and partial ones of kills."""
    best = best_step(run)
    for folder in step_folders(run)[:-keep]:
        if folder != best:
            shutil.rmtree(folder)
    for partial in run.glob("step-*.partial"):
        shutil.rmtree(partial)


def resolve_model_folder(path: str | Path) -> Path:
    """`path` itself if it is a model folder; of a run folder, its newest complete step folder.

    Raises CheckpointError if it is neither.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    newest = newest_step(path)
    if newest is None:
        raise CheckpointError(
            f"{path} is neither a model folder (config.json) nor a run folder with a complete "
            "step-XXXXXXXX in it."
        )
    return newest
