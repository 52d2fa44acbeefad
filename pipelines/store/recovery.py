"""What a driver does to a store before and after its tasks, while it holds the lock."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ops import disk, paths
from ops.files import (
    MAX_JSON_BYTES,
    NotRegularError,
    atomic_path,
    json_bytes,
    json_hash,
    parse_json,
)
from ops.paths import AnyPath, ObjectPath, below, open_binary, write_json_if_changed
from pipelines.store.commit import SHA256, committed_tasks, publish_task
from pipelines.store.layout import (
    LISTED,
    STAGED,
    StoreError,
    checksums_path,
    lock_path,
    staging_path,
    tokenizer_folder,
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
    "_rows/",
    "_tokenizer/",
    "g*/",
    "g*/*/",
)
#: The Parquet files that are created exclusively: of a store, and of a folder of samples.
EXCLUSIVE = (
    "_plan/*.parquet",
    "_tombstones/*.parquet",
    "_index/*/*.parquet",
    "index/*.parquet",
)
PARQUET_END = b"PAR1"
OWN = "_checksums.json"  # the key of the checksum file's own checksum


def remove_partials(root: AnyPath, folders: Iterable[str] = WRITTEN_FOLDERS) -> None:
    """Remove files that a killed driver or worker left half written; an object store has none."""
    if isinstance(root, ObjectPath):
        return
    if root.is_dir() and not disk.disk.makes_links(root):
        _remove_unfinished_parts(root)
    for pattern in (f"{folder}*.partial" for folder in folders):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else disk.disk.unlink(path)


def _remove_unfinished_parts(root: Path) -> None:
    """Remove Parquet files of which a killed process has written only the first part.

    There are none on disks with hard links, where they appear whole.
    """
    for pattern in EXCLUSIVE:
        for path in root.glob(pattern):
            with open_binary(path, follow=False) as file:
                file.seek(max(0, path.stat().st_size - len(PARQUET_END)))
                whole = file.read() == PARQUET_END
            if not whole:
                disk.disk.unlink(path)


def keep_tokenizer(root: AnyPath, folder: Path) -> None:
    """Copy the tokenizer that decodes the codes into the store: config.json and its weights."""
    copy = tokenizer_path(root, track_name(root))
    averaged = folder / "ema.safetensors"
    weights = averaged if averaged.is_file() else folder / "model.safetensors"
    if isinstance(copy, ObjectPath):
        if not paths.exists(copy / "config.json"):  # written last: then the weights are there
            paths.copy(weights, copy / "model.safetensors")
            paths.copy(folder / "config.json", copy / "config.json")
        return
    if copy.exists():
        return
    with atomic_path(copy) as partial:
        partial.mkdir()
        shutil.copyfile(folder / "config.json", partial / "config.json")
        shutil.copyfile(weights, partial / "model.safetensors")


def local_tokenizer(root: AnyPath, cache: Path) -> Path:
    """The folder of the tokenizer kept for a store or track; of an object store, a copy of it
    below `cache`, by its content."""
    folder = tokenizer_folder(root)
    if not isinstance(folder, ObjectPath):
        return folder
    config = paths.read_whole(folder / "config.json")
    weights = paths.file_info(folder / "model.safetensors")
    if weights is None:
        raise StoreError(f"{folder}: its weights are missing. Run verify.")
    name = json_hash([config.decode(errors="replace"), weights.size, weights.etag])
    copy = cache / "tokenizers" / name
    if not copy.is_dir():
        with atomic_path(copy) as partial:
            partial.mkdir()
            (partial / "config.json").write_bytes(config)
            paths.copy(folder / "model.safetensors", partial / "model.safetensors")
    return copy


def publish_committed(root: AnyPath) -> None:
    """Publish shards of tasks whose worker was killed between commit and publication."""
    committed = committed_tasks(root)
    for path in paths.matching(staging_path(root), "*.shard"):
        match = STAGED.fullmatch(path.name)
        if match and (match["grid"], int(match["task"])) in committed:
            publish_task(root, match["grid"], int(match["task"]))


def empty_staging(root: AnyPath, unfinished: Collection[tuple[str, int]] = ()) -> None:
    """Remove staged files, once all tasks that ran are committed and published.

    The partial shards of `unfinished` tasks, as (grid, task), are kept. In an object store, where
    another driver may be at work all the same, so are the shards of tasks that are not committed.
    """
    remote = isinstance(root, ObjectPath)
    done = committed_tasks(root) if remote else set()
    if remote:
        publish_committed(root)  # after `done` was listed, so that all of them are published
    for path in paths.matching(staging_path(root), "*"):
        if path == lock_path(root) or task_of_partial_shard(path) in unfinished:
            continue
        shard = STAGED.fullmatch(path.name) if remote else None
        if shard is None or (shard["grid"], int(shard["task"])) in done:
            paths.remove(path)


def forget_missing(root: AnyPath) -> None:
    """Drop the checksums of files that were removed to be made again, before a run makes them.

    Raises StoreError for files that no run can make again: parts of the plan and tombstones.
    """
    checksums = read_checksums(root)
    if checksums is None:
        return
    there = {below(path, root) for path in listed_files(root)}
    kept = {name: digest for name, digest in checksums.items() if name in there}
    for name in sorted(checksums.keys() - kept.keys()):
        if name.startswith(("_plan/", "_tombstones/")):
            raise StoreError(f"{root}/{name}: missing. Restore it from a copy.")
    _write(root, kept)


def forget(root: AnyPath, removed: Iterable[AnyPath]) -> None:
    """Drop the checksums of files that are about to be removed or written again."""
    checksums = read_checksums(root)
    if checksums is not None:
        names = {below(path, root) for path in removed}
        _write(root, {name: sha for name, sha in checksums.items() if name not in names})


def write_checksums(root: AnyPath) -> None:
    """Add the sha256 of every file that has no other checksum; recorded ones are not changed.

    A file is hashed once, when it is new, so that later corruption never becomes its checksum.
    """
    known = read_checksums(root) or {}
    files = {below(path, root): path for path in listed_files(root)}
    _write(root, {name: known.get(name) or paths.hash_file(path) for name, path in files.items()})


def read_checksums(root: AnyPath) -> dict[str, str] | None:
    """sha256 by path below the store; None where no run has ended yet, StoreError if corrupt."""
    path = checksums_path(root)
    try:
        with open_binary(path, follow=False) as file:
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


def _write(root: AnyPath, checksums: dict[str, str]) -> None:
    ordered = dict(sorted(checksums.items()))
    write_json_if_changed(checksums_path(root), {**ordered, OWN: json_hash(ordered)})


def listed_files(root: AnyPath) -> Iterator[AnyPath]:
    """Every file that has a checksum once a run has ended."""
    for pattern in ("_plan/*.parquet", "_tombstones/*.parquet", "_index/*/*.parquet"):
        yield from paths.matching(root, pattern)
    for path in paths.matching(root, "_tokenizer/*/*"):
        if LISTED.fullmatch(below(path, root)) and (isinstance(path, ObjectPath) or path.is_file()):
            yield path
