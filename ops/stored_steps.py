"""Checkpoints of a run in an object store: first their files, then the manifest that names them.

    s3://bucket/run/manifests/step-00010000.json        sizes and hashes of the files
      step-00010000-0123456789abcdef/config.json        the files, in a folder named for them

A step without its manifest does not exist. The folder's name is made of the files' hashes, so
whoever writes a step again can only put the same bytes in their place; the manifest is created
exclusively.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.checkpoint import held_out_of, step_of
from ops.config import UserError
from ops.files import file_hash, json_bytes, json_hash, parse_json
from ops.object_paths import ObjectPath
from ops.object_store import (
    create_object,
    download,
    list_objects,
    read_object,
    remove_object,
    write_object,
)
from ops.tensor_files import CheckpointError

MANIFESTS = "manifests"
MANIFEST = re.compile(r"step-(\d{8})\.json")
FORMAT = 1
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
FOLDER = re.compile(r"step-\d{8}-[0-9a-f]{16}")
SHA256 = re.compile(r"[0-9a-f]{64}")
DESCRIPTION = "config.json"  # written last, so that a copy of an unfinished folder is no model


class StepConflictError(UserError):
    """A step that another process has written with other content."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a step."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StoredStep:
    """A complete step of the run at `run`, as its manifest describes it."""

    run: ObjectPath
    step: int
    name: str  # of the folder with its files
    files: dict[str, StoredFile]
    held_out_loss: float  # infinite where none was measured

    @property
    def folder(self) -> ObjectPath:
        return self.run / self.name

    @property
    def manifest(self) -> ObjectPath:
        return self.run / MANIFESTS / f"step-{self.step:08d}.json"


def stored_steps(run: ObjectPath) -> list[StoredStep]:
    """The complete steps of a run, oldest first; CheckpointError for a corrupt manifest."""
    found = [each.path for each in list_objects(run / MANIFESTS)]
    return [_read(run, path) for path in found if MANIFEST.fullmatch(path.name)]


def _read(run: ObjectPath, path: ObjectPath) -> StoredStep:
    match = MANIFEST.fullmatch(path.name)
    assert match is not None
    try:
        data = parse_json(read_object(path))
        files = {name: _file(name, each) for name, each in data["files"].items()}
        loss = data["held_out_loss"]
        if data["format"] != FORMAT or not FOLDER.fullmatch(data["folder"]) or not files:
            raise ValueError("it is of another version")
        loss = math.inf if loss is None else float(loss)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: corrupt ({error}). Remove it to go on from the step before."
        ) from error
    return StoredStep(
        run=run, step=int(match[1]), name=data["folder"], files=files, held_out_loss=loss
    )


def _file(name: str, described: Any) -> StoredFile:
    size, sha256 = described["size"], described["sha256"]
    if not (FILE.fullmatch(name) and type(size) is int and SHA256.fullmatch(sha256)):
        raise ValueError("it names no file of a step")
    return StoredFile(size=size, sha256=sha256)


def newest_stored_step(run: ObjectPath) -> StoredStep | None:
    """The newest complete step of a run, or None: where to resume."""
    steps = stored_steps(run)
    return steps[-1] if steps else None


def lowest_stored_loss(run: ObjectPath) -> float:
    """The lowest held-out loss of a run's steps; infinite where none was measured."""
    return min((step.held_out_loss for step in stored_steps(run)), default=math.inf)


def upload_step(folder: Path, run: ObjectPath) -> StoredStep:
    """Copy a complete local step folder to the run; its manifest, last, makes it visible.

    Files that an interrupted upload has left are not sent again. Raises StepConflictError where
    another process has written this step with other content.
    """
    files = {path.name: path for path in sorted(folder.iterdir())}
    described = {
        name: {"size": path.stat().st_size, "sha256": file_hash(path)}
        for name, path in files.items()
    }
    step, loss = step_of(folder), held_out_of(folder)
    name = f"step-{step:08d}-{json_hash(described)[:16]}"
    there = {each.path.name: each.size for each in list_objects(run / name)}
    for file in sorted(files, key=lambda each: (each == DESCRIPTION, each)):
        if there.get(file) != described[file]["size"]:
            write_object(run / name / file, files[file])
    stored = StoredStep(
        run=run,
        step=step,
        name=name,
        files={file: _file(file, each) for file, each in described.items()},
        held_out_loss=loss,
    )
    manifest = {
        "format": FORMAT,
        "folder": name,
        "files": described,
        "held_out_loss": loss if math.isfinite(loss) else None,
    }
    if not create_object(stored.manifest, json_bytes(manifest)):
        raise StepConflictError(
            f"{stored.manifest} was written by another process, which trains in {run}, too. Let "
            "one of them go on, or use another --out."
        )
    return stored


def download_step(step: StoredStep, folder: Path) -> None:
    """Copy a step's files into an empty local folder, checked by their hashes.

    Raises CheckpointError where one is missing or has other content.
    """
    for name, described in step.files.items():
        path = step.folder / name
        try:
            with open(folder / name, "xb") as file:
                download(path, file)
        except FileNotFoundError as error:
            if error.filename != str(path):
                raise
            raise _corrupt(step, path, "missing") from None
        with open(folder / name, "rb") as copy:
            if hashlib.file_digest(copy, "sha256").hexdigest() != described.sha256:
                raise _corrupt(step, path, "its content is not what was written")


def _corrupt(step: StoredStep, path: ObjectPath, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: {why}. Remove {step.manifest} to go on from the step before.")


def prune_stored_steps(run: ObjectPath, keep: int) -> None:
    """Remove all steps but the newest `keep` and the best, and what interrupted uploads of older
    steps have left.

    A step's manifest goes first: nobody sees a part of it.
    """
    steps = stored_steps(run)
    best = min(steps, key=lambda step: step.held_out_loss, default=None)
    kept = [*steps[-keep:], *([best] if best and math.isfinite(best.held_out_loss) else [])]
    for step in steps:
        if step not in kept:
            remove_object(step.manifest)
    names, newest = {step.name for step in kept}, steps[-1].name if steps else ""
    for each in list_objects(run):
        name = each.path.relative_to(run).parts[0]
        if FOLDER.fullmatch(name) and name not in names and name[:13] <= newest[:13]:
            remove_object(each.path)
