"""The tokenizers that a prior and its conditions need: copied into a run folder, found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ops.checkpoint import CheckpointError, copy_model
from ops.config import ConfigError
from ops.files import atomic_path
from ops.paths import AnyPath, ObjectPath
from pipelines.store import CodeStore
from prior import Prior
from tokenizer import VQGAN, bundled_tokenizers, load_tokenizer

IMAGE = Path("tokenizer")
TRACKS = Path("track_tokenizers")


def tokenizer_info(tokenizer: VQGAN) -> dict[str, Any]:
    """What a prior's model folder records of the tokenizer of its codes."""
    return {
        "name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }


def keep_tokenizers(run: Path, store: CodeStore, tracks: Sequence[str], *, begun: bool) -> None:
    """Copy into a run folder the store's tokenizer, and those of the named tracks.

    Those of a run that has `begun` are kept. Raises CheckpointError where one cannot be read.
    """
    _keep(run / IMAGE, store.tokenizer_folder, begun)
    for track in tracks:
        _keep(run / TRACKS / track, store.track(track).tokenizer_folder, begun)


def _keep(folder: Path, source: Path, begun: bool) -> None:
    if not (begun and folder.exists()):
        with atomic_path(folder) as partial:
            copy_model(source, partial)


def find_tokenizer(path: AnyPath, prior: Prior, device: torch.device) -> VQGAN:
    """The tokenizer of the codes that `prior`, loaded from `path`, was trained on.

    Looks for a folder `tokenizer` in the run or model folder, then for a bundled tokenizer of the
    recorded name. Raises CheckpointError where there is none, ConfigError for another one.
    """
    found: Path | str | None = _folder(path, prior, IMAGE)
    name, wanted = prior.tokenizer_info["name"], prior.tokenizer_info["fingerprint"]
    if found is None and name in bundled_tokenizers():
        found = name
    if found is None:
        raise CheckpointError(
            f"{path} has no folder `tokenizer`, and {name!r} is not bundled. Copy the model folder "
            f"of the tokenizer with fingerprint {wanted} to {path}/{IMAGE}."
        )
    tokenizer = load_tokenizer(found, device)
    if tokenizer.fingerprint != wanted:
        raise ConfigError(
            f"The prior in {path} was trained on codes of tokenizer {wanted} ({name}), but {found} "
            f"is {tokenizer.fingerprint}: its images would be noise. Put the right one there."
        )
    return tokenizer


def track_tokenizers(
    path: AnyPath, prior: Prior, names: Sequence[str], device: torch.device
) -> Mapping[str, VQGAN]:
    """The tokenizers of those conditions, by name, of `prior`, loaded from `path`.

    Raises CheckpointError where one is missing, ConfigError where it is another one than that of
    the codes the prior was trained on.
    """
    found = {}
    for part in prior.conditions.parts:
        if part.name not in names:
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
                f"The prior in {path} was trained on {part.name} in codes of tokenizer {wanted}, "
                f"but {folder} is {found[part.name].fingerprint}. Put the right one there."
            )
    return found


def _folder(path: AnyPath, prior: Prior, name: Path) -> Path | None:
    assert prior.folder is not None
    # The local copy of a prior in an object store has its tokenizers.
    given = () if isinstance(path, ObjectPath) else (path, prior.folder.parent)
    places = (*given[:1], prior.folder, *given[1:])
    return next((place / name for place in places if (place / name).is_dir()), None)
