"""What a driver does for a store before and after it encodes; the lock says that it is alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ops import disk
from ops.files import atomic_path, file_hash, json_hash
from pipelines.store.commit import committed_tasks, publish_task
from pipelines.store.layout import (
    StoreError,
    checksums_path,
    says,
    staging_path,
    tokenizer_path,
    track_name,
    write_if_changed,
)

LOCK = "driver.lock"
#: The checksums' own checksum stands under this name among them.
OWN = "_checksums.json"


def remove_partials(root: Path) -> None:
    """Remove what a killed driver, or its workers, left half written."""
    folders = ("", "_plan/", "_tombstones/", "_staging/", "_tokenizer/", "g*/", "g*/*/")
    for pattern in (f"{folder}*" for folder in folders):
        for path in root.glob(f"{pattern}.partial"):
            shutil.rmtree(path) if path.is_dir() else disk.disk.unlink(path)


def keep_tokenizer(root: Path, folder: Path) -> None:
    """Keep what decodes the store beside its codes: config.json and the weights that are used."""
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
    """Publish shards of tasks that were committed just before a kill."""
    committed = committed_tasks(root)
    for path in staging_path(root).glob("*.shard"):
        grid, number = path.name.split("-")[:2]
        if (grid, int(number)) in committed:
            publish_task(root, grid, int(number))


def empty_staging(root: Path) -> None:
    """Remove what dead attempts left; only once all tasks are committed and published."""
    for path in staging_path(root).iterdir():
        if path.name != LOCK:
            disk.disk.unlink(path)


def forget_missing(root: Path) -> None:
    """Drop the checksums of files that were taken away to be made anew, before a run makes them.

    Raises StoreError for what no run can make anew: a part of the plan, or of the pruned rows.
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
    """Drop the checksums of files that are about to be removed or written anew."""
    checksums = read_checksums(root)
    if checksums is not None:
        names = {path.relative_to(root).as_posix() for path in paths}
        _write(root, {name: sha for name, sha in checksums.items() if name not in names})


def write_checksums(root: Path) -> None:
    """List the sha256 of every file that can only be checked by one; those listed already stay.

    What a file was when it was new counts, so that damage is never taken for its right content.
    """
    known = read_checksums(root) or {}
    names = [path.relative_to(root).as_posix() for path in listed_files(root)]
    _write(root, {name: known.get(name) or file_hash(root / name) for name in names})


def read_checksums(root: Path) -> dict[str, str] | None:
    """sha256 by path below the store; None where no run has ended yet, StoreError if damaged."""
    path = checksums_path(root)
    checksums: dict[str, str] = {}
    try:
        checksums = json.loads(path.read_bytes())
        own = checksums.pop(OWN)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        own = None
    if own != json_hash(checksums) or not says(path, {**checksums, OWN: own}):
        raise StoreError(f"{path}: damaged. Remove it and run encode again to make it anew.")
    return checksums


def _write(root: Path, checksums: dict[str, str]) -> None:
    ordered = dict(sorted(checksums.items()))
    write_if_changed(checksums_path(root), {**ordered, OWN: json_hash(ordered)})


def listed_files(root: Path) -> Iterator[Path]:
    """Every file that has its checksum in the list once a run has ended."""
    for pattern in ("_plan/*.parquet", "_tombstones/*.parquet", "_index/*/*.parquet"):
        yield from root.glob(pattern)
    yield from (path for path in root.glob("_tokenizer/**/*") if path.is_file())
