"""What a driver does to a store before and after its tasks, while it holds the lock."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ops import disk
from ops.files import (
    MAX_JSON_BYTES,
    NotRegularError,
    atomic_path,
    file_hash,
    json_bytes,
    json_hash,
    open_regular,
    parse_json,
    write_json_if_changed,
)
from pipelines.store.commit import SHA256, committed_tasks, publish_task
from pipelines.store.layout import (
    LISTED,
    STAGED,
    StoreError,
    checksums_path,
    lock_path,
    staging_path,
    tokenizer_path,
    track_name,
)
from pipelines.store.partial import task_of_partial_shard

#: Folders of a store in which files are written under temporary names.
WRITTEN_FOLDERS = (
    "",
    "_plan/",
    "_tombstones/",
    "_staging/",
    "_sources/",
    "_sources/archives/",
    "_tokenizer/",
    "g*/",
    "g*/*/",
)
OWN = "_checksums.json"  # the key of the checksum file's own checksum


def remove_partials(root: Path, folders: Iterable[str] = WRITTEN_FOLDERS) -> None:
    """Remove files that a killed driver or worker left half written."""
    for pattern in (f"{folder}*.partial" for folder in folders):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else disk.disk.unlink(path)


def keep_tokenizer(root: Path, folder: Path) -> None:
    """Copy the tokenizer that decodes the codes into the store: config.json and its weights."""
    copy = tokenizer_path(root, track_name(root))
    if copy.exists():
        return
    averaged = folder / "ema.safetensors"
    with atomic_path(copy) as partial:
        partial.mkdir()
        shutil.copyfile(folder / "config.json", partial / "config.json")
        weights = averaged if averaged.is_file() else folder / "model.safetensors"
        shutil.copyfile(weights, partial / "model.safetensors")


def publish_committed(root: Path) -> None:
    """Publish shards of tasks whose worker was killed between commit and publication."""
    committed = committed_tasks(root)
    for path in staging_path(root).glob("*.shard"):
        match = STAGED.fullmatch(path.name)
        if match and (match["grid"], int(match["task"])) in committed:
            publish_task(root, match["grid"], int(match["task"]))


def empty_staging(root: Path, unfinished: Collection[tuple[str, int]] = ()) -> None:
    """Remove staged files, once all tasks that ran are committed and published.

    The partial shards of `unfinished` tasks, as (grid, task), are kept.
    """
    for path in staging_path(root).iterdir():
        if path != lock_path(root) and task_of_partial_shard(path) not in unfinished:
            disk.disk.unlink(path)


def forget_missing(root: Path) -> None:
    """Drop the checksums of files that were removed to be made again, before a run makes them.

    Raises StoreError for files that no run can make again: parts of the plan and tombstones.
    """
    checksums = read_checksums(root)
    if checksums is None:
        return
    kept = {name: digest for name, digest in checksums.items() if (root / name).is_file()}
    for name in sorted(checksums.keys() - kept.keys()):
        if name.startswith(("_plan/", "_tombstones/")):
            raise StoreError(f"{root / name}: missing. Restore it from a copy.")
    _write(root, kept)


def forget(root: Path, paths: Iterable[Path]) -> None:
    """Drop the checksums of files that are about to be removed or written again."""
    checksums = read_checksums(root)
    if checksums is not None:
        names = {path.relative_to(root).as_posix() for path in paths}
        _write(root, {name: sha for name, sha in checksums.items() if name not in names})


def write_checksums(root: Path) -> None:
    """Add the sha256 of every file that has no other checksum; recorded ones are not changed.

    A file is hashed once, when it is new, so that later corruption never becomes its checksum.
    """
    known = read_checksums(root) or {}
    names = [path.relative_to(root).as_posix() for path in listed_files(root)]
    _write(root, {name: known.get(name) or file_hash(root / name) for name in names})


def read_checksums(root: Path) -> dict[str, str] | None:
    """sha256 by path below the store; None where no run has ended yet, StoreError if corrupt."""
    path = checksums_path(root)
    try:
        with open_regular(path, follow=False) as file:
            return _parse_checksums(file.read(MAX_JSON_BYTES + 1))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, NotRegularError) as error:
        raise StoreError(
            f"{path}: corrupt. Remove it and run encode again to make a new one."
        ) from error


def _parse_checksums(data: bytes) -> dict[str, str]:
    """The checksums in the bytes that _write makes of them; ValueError or the like for others."""
    checksums: dict[str, str] = parse_json(data)
    own = checksums.pop(OWN)
    if own != json_hash(checksums) or data != json_bytes({**checksums, OWN: own}):
        raise ValueError("it does not match the hash of it")
    for name, digest in checksums.items():
        if not (LISTED.fullmatch(name) and SHA256.fullmatch(digest)):
            raise ValueError("it lists other files than those of a store")
    return checksums


def _write(root: Path, checksums: dict[str, str]) -> None:
    ordered = dict(sorted(checksums.items()))
    write_json_if_changed(checksums_path(root), {**ordered, OWN: json_hash(ordered)})


def listed_files(root: Path) -> Iterator[Path]:
    """Every file that has a checksum once a run has ended."""
    for pattern in ("_plan/*.parquet", "_tombstones/*.parquet", "_index/*/*.parquet"):
        yield from root.glob(pattern)
    for path in root.glob("_tokenizer/*/*"):
        if LISTED.fullmatch(path.relative_to(root).as_posix()) and path.is_file():
            yield path
