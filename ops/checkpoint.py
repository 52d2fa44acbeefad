"""Model folders and step folders of training runs.

A model folder is `config.json` + `model.safetensors`; loading it unpickles nothing. A run folder
holds step folders `step-00010000/`, each a model folder with `ema.safetensors` and
`train_state.pt` added.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ops.config import ConfigError, from_json, parse_json
from ops.files import NotRegularError, json_hash, open_regular, write_json
from ops.tensor_files import CheckpointError as CheckpointError
from ops.tensor_files import save_tensors
from ops.text import printable

T = TypeVar("T")
#: Increased whenever older model folders cannot be read: 2 since configs have `modality`.
FORMAT = 2
#: A step folder's name; that of an object store ends in a hash of its content.
STEP_FOLDER = re.compile(r"step-(\d{8})(?:-[0-9a-f]{16})?")
STEP_FILES = ("config.json", "model.safetensors", "train_state.pt")
HELD_OUT = "held_out.json"  # in a step folder: {"loss": its loss on held-out samples}
SKIPPED = "skipped.json"  # in a step folder: {"steps": [those not taken]}
LARGEST_DESCRIPTION = 1 << 26  # bytes of config.json, with the names of all classes
LONGEST_NAME = 200


def save_model(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors into `folder`, created if missing.

    Not atomic by itself: pass the partial folder of ops.files.atomic_path. `kind` must be repeated
    to read_description; `extra` adds top-level entries to config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {"format": FORMAT, "kind": kind, "config": dict(config), **(extra or {})}
    write_json(folder / "config.json", description)
    save_tensors(folder / "model.safetensors", tensors)


def read_description(folder: Path, kind: str) -> dict[str, Any]:
    """The config.json of a model folder of a kind; its entries beyond that are not checked.

    Raises CheckpointError where it cannot be read, or describes another kind of model.
    """
    path = folder / "config.json"
    try:
        with open_regular(path) as file:
            text = file.read(LARGEST_DESCRIPTION + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no model folder: it has no config.json.") from None
    except NotRegularError as error:
        raise CheckpointError(str(error)) from None
    if len(text) > LARGEST_DESCRIPTION:
        raise CheckpointError(f"{path} is larger than {LARGEST_DESCRIPTION:,} bytes.")
    try:
        description = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Restore it from a copy.") from None
    if not isinstance(description, dict):
        raise CheckpointError(f"{path} holds no JSON object. Restore it from a copy.")
    _check_kind(folder, description, kind)
    return description


def _check_kind(folder: Path, description: Mapping[str, Any], kind: str) -> None:
    found = description.get("format", 1)
    if type(found) is not int or found > FORMAT:
        raise CheckpointError(
            f"{folder / 'config.json'} is of a newer format than {FORMAT}. Upgrade smalti."
        )
    if found < FORMAT:
        raise CheckpointError(
            f"{folder / 'config.json'} was written by an older version of Smalti (format {found}, "
            f"this one reads {FORMAT}). Train or import the model again."
        )
    if description.get("kind") != kind:
        raise CheckpointError(
            f"{folder} holds a {printable(repr(description.get('kind')), 60)}, not a {kind!r}. "
            f"Name a {kind} folder."
        )


def described(folder: Path, description: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """The entry `name` of a config.json, of type `kind`; raises CheckpointError."""
    found = description.get(name)
    too_long = isinstance(found, str) and len(found) > LONGEST_NAME
    if type(found) is not kind or too_long:
        raise CheckpointError(
            f"{folder / 'config.json'}: {name} must be {kind.__name__}, found "
            f"{printable(repr(found), 60)}. Restore it from a copy."
        )
    return found


def described_config(folder: Path, description: Mapping[str, Any], cls: type[T]) -> T:
    """The entry `config` of a config.json as a dataclass; raises CheckpointError."""
    with config_errors_explained(folder):
        return from_json(cls, description.get("config"))


@contextmanager
def config_errors_explained(folder: Path) -> Iterator[None]:
    """Raise a ConfigError about what config.json says as a CheckpointError that names the file."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def copy_model(source: Path, target: Path) -> None:
    """Copy the files of a model folder, and nothing else that is in it, to the folder `target`.

    Raises CheckpointError where one is missing or no regular file.
    """
    target.mkdir()
    for name in ("config.json", weights_file(source).name):
        try:
            with open_regular(source / name) as file, open(target / name, "xb") as copy:
                shutil.copyfileobj(file, copy)
        except (FileNotFoundError, NotRegularError) as error:
            raise CheckpointError(f"{source} is no model folder: {error}") from None


def weights_file(folder: Path) -> Path:
    """The weights of a model folder to use: averaged ones where it has them."""
    averaged = folder / "ema.safetensors"
    return averaged if averaged.is_file() else folder / "model.safetensors"


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
    match = STEP_FOLDER.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


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
    if not path.is_file():
        return math.inf
    try:
        return float(parse_json(path.read_bytes())["loss"])
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{path} is corrupt. Remove it.") from None


def write_skipped(folder: Path, steps: Sequence[int]) -> None:
    """Write into a checkpoint's folder which steps the run has skipped so far."""
    write_json(folder / SKIPPED, {"steps": list(steps)})


def skipped_of(folder: Path) -> list[int]:
    """The steps that write_skipped wrote; none where it did not."""
    path = folder / SKIPPED
    if not path.is_file():
        return []
    try:
        return [int(step) for step in parse_json(path.read_bytes())["steps"]]
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{path} is corrupt. Remove {folder}.") from None


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


def holds_model(path: Path) -> bool:
    """Whether resolve_model_folder finds something there."""
    return (path / "config.json").is_file() or newest_step(path) is not None


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
