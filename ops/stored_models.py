"""Models in object stores: the files that are needed to load one, copied to a local folder.

The copies are bounded: those used longest ago are removed. A copy appears whole, and is used as
long as the objects have the sizes and etags that they had, so a model that has changed is copied
again.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ops.cache_folder import CACHE_VARIABLE, cache_folder
from ops.checkpoint import STEP_FILES, STEP_FOLDER
from ops.disk_errors import DiskError, disk_error_message
from ops.files import atomic_path, json_hash, make_folders, waited_lock
from ops.object_paths import AnyPath, ObjectPath, parse_path
from ops.object_store import ObjectInfo, download, find_object, list_objects
from ops.stored_steps import newest_stored_step
from ops.tensor_files import CheckpointError

MOST_BYTES = 32 << 30  # of all copies together, but for the newest
DESCRIPTION, WEIGHTS, AVERAGES = "config.json", "model.safetensors", "ema.safetensors"
#: Of a prior, next to its own files or in its run: the tokenizers that it needs.
TOKENIZERS = ("tokenizer", "track_tokenizers")

PLAIN_STEP = re.compile(r"step-\d{8}/")
Files = dict[str, ObjectInfo]  # by their names in the copy


def model_path(name_or_path: str | AnyPath) -> str | AnyPath:
    """The argument itself, but an ObjectPath where it is the text of one."""
    if isinstance(name_or_path, str) and "://" in name_or_path:
        path = parse_path(name_or_path)
        return path if isinstance(path, ObjectPath) else name_or_path
    return name_or_path


def stored_model(path: ObjectPath) -> ObjectPath:
    """`path` itself if it is a model folder; of a run, the folder of its newest complete step.

    Raises CheckpointError if it is neither.
    """
    if path.key and find_object(path / DESCRIPTION) is not None:
        return path
    newest = newest_stored_step(path)
    if newest is not None:
        return newest.folder
    copied = _newest_copied_step(path)
    if copied is None:
        raise CheckpointError(
            f"{path} is neither a model folder (config.json) nor a run with a complete checkpoint "
            "(manifests/step-XXXXXXXX.json)."
        )
    return copied


def _newest_copied_step(run: ObjectPath) -> ObjectPath | None:
    """The newest complete step folder of a run that was copied from a disk, without manifests."""
    names = {each.path.relative_to(run).as_posix() for each in list_objects(run)}
    steps = {name.partition("/")[0] for name in names if PLAIN_STEP.match(name)}
    complete = [step for step in steps if all(f"{step}/{file}" in names for file in STEP_FILES)]
    return run / max(complete) if complete else None


def local_model(path: ObjectPath) -> Path:
    """A local copy of the model folder at `path`, or of a run's newest step.

    It has config.json, the weights to use, and the tokenizers of a prior. Raises CheckpointError
    where there is no such model, DiskError where the disk refuses to keep it.
    """
    folder = stored_model(path)
    files = _needed(folder)
    cache = cache_folder("models")
    entry = cache / json_hash([[n, str(f.path), f.size, f.etag] for n, f in sorted(files.items())])
    try:
        make_folders(cache)
        with waited_lock(entry.with_name(f"{entry.name}.lock")):
            if entry.is_dir():
                os.utime(entry)
            else:
                _copy(folder, files, entry)
                _shrink(cache, entry)
    except OSError as error:
        raise DiskError(
            f"{disk_error_message(error, cache)} Or name another folder for such copies by the "
            f"environment variable {CACHE_VARIABLE}."
        ) from error
    return entry / folder.name


def _needed(folder: ObjectPath) -> Files:
    found = _model_files(_below(folder))
    if not found:
        raise CheckpointError(f"{folder}: its config or weights are missing.")
    places = [folder, *([folder.parent] if STEP_FOLDER.fullmatch(folder.name) else [])]
    for name in TOKENIZERS:
        for place in places:
            below = _below(place / name)
            if below:
                found |= {f"{name}/{each}": info for each, info in below.items()}
                break
    return found


def _below(folder: ObjectPath) -> Files:
    return {each.path.relative_to(folder).as_posix(): each for each in list_objects(folder)}


def _model_files(found: Files) -> Files:
    """Of the files of a model folder, those that are read."""
    weights = AVERAGES if AVERAGES in found else WEIGHTS
    names = (DESCRIPTION, weights)
    return {name: found[name] for name in names} if found.keys() >= set(names) else {}


def _copy(folder: ObjectPath, files: Files, entry: Path) -> None:
    with atomic_path(entry) as partial:
        for name, info in files.items():
            target = partial / folder.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(target, "xb") as file:
                    download(info.path, file)
            except FileNotFoundError as error:
                if error.filename != str(info.path):
                    raise
                raise _changed(info) from None
            now = find_object(info.path)
            if (
                now is None
                or (now.size, now.etag) != (info.size, info.etag)
                or (target.stat().st_size != info.size)
            ):
                raise _changed(info)


def _changed(info: ObjectInfo) -> CheckpointError:
    return CheckpointError(f"{info.path} changed while it was read. Run the command again.")


def _shrink(cache: Path, newest: Path) -> None:
    """Remove the copies used longest ago until the others have at most MOST_BYTES."""
    entries = [path for path in cache.iterdir() if path.is_dir() and path.suffix == ""]
    kept = 0
    for path in sorted(entries, key=lambda entry: entry.stat().st_mtime, reverse=True):
        kept += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if kept > MOST_BYTES and path != newest:
            shutil.rmtree(path, ignore_errors=True)
