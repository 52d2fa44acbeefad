"""The tokenizers in a prior's run folder: of the pictures, and of what the prior is told."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ops.checkpoint import CheckpointError
from ops.config import ConfigError
from ops.files import atomic_path
from pipelines.store import CodeStore
from prior import Prior
from tokenizer import VQGAN, bundled_tokenizers, load_tokenizer

IMAGE = Path("tokenizer")
TRACKS = Path("track_tokenizers")
#: Conditions whose grids are codes of a tokenizer of their own.
TOLD_BY_TOKENIZER = ("segmentation", "depth")


def keep_tokenizers(run: Path, store: CodeStore, tracks: Sequence[str]) -> None:
    """Copy the store's tokenizer into a run folder, and those of the tracks that have their own."""
    _keep(run / IMAGE, store.tokenizer_folder)
    for track in tracks:
        if track in TOLD_BY_TOKENIZER:
            _keep(run / TRACKS / track, store.track(track).tokenizer_folder)


def _keep(folder: Path, source: Path) -> None:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) as partial:
            shutil.copytree(source, partial)


def find_tokenizer(path: Path, prior: Prior, device: torch.device) -> VQGAN:
    """The tokenizer whose codes `prior`, loaded from `path`, speaks of.

    Looks for a folder `tokenizer` in the run or model folder, then for a bundled tokenizer of the
    recorded name. Raises CheckpointError where there is none, ConfigError for a foreign one.
    """
    found: Path | str | None = _folder(path, prior, IMAGE)
    name, wanted = prior.tokenizer_info["name"], prior.tokenizer_info["fingerprint"]
    if found is None and name in bundled_tokenizers():
        found = name
    if found is None:
        raise CheckpointError(
            f"{path} has no folder `tokenizer`, and {name!r} is not bundled. Copy the model folder "
            f"of the tokenizer with fingerprint {wanted} to {path / IMAGE}."
        )
    tokenizer = load_tokenizer(found, device)
    if tokenizer.fingerprint != wanted:
        raise ConfigError(
            f"The prior in {path} speaks of codes of tokenizer {wanted} ({name}), but {found} is "
            f"{tokenizer.fingerprint}: its pictures would be noise. Put the right one there."
        )
    return tokenizer


def track_tokenizers(path: Path, prior: Prior, device: torch.device) -> Mapping[str, VQGAN]:
    """The tokenizers, by condition, of the grids that `prior`, loaded from `path`, is told.

    Raises CheckpointError where one is missing, ConfigError where it is another one.
    """
    found = {}
    for part in prior.conditions.parts:
        if part.name not in TOLD_BY_TOKENIZER:
            continue
        folder = _folder(path, prior, TRACKS / part.name)
        if folder is None:
            raise CheckpointError(
                f"{path} has no folder {TRACKS / part.name}. Copy the model folder of the "
                f"tokenizer of track {part.name!r} there."
            )
        found[part.name] = load_tokenizer(folder, device)
        wanted = getattr(part, "fingerprint", "")
        if wanted and found[part.name].fingerprint != wanted:
            raise ConfigError(
                f"The prior in {path} is told {part.name} in codes of tokenizer {wanted}, but "
                f"{folder} is {found[part.name].fingerprint}. Put the right one there."
            )
    return found


def _folder(path: Path, prior: Prior, name: Path) -> Path | None:
    assert prior.folder is not None
    places = (path, prior.folder, prior.folder.parent)
    return next((place / name for place in places if (place / name).is_dir()), None)
