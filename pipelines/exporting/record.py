"""What a folder of exported files says of itself.

    out/export.json                    the settings that decide the files, and what they hold
      _export/32x32-00000.json         of a shard that is done: its rows and its files
      _export/32x32-00000.*.partial/   a shard that is being written

A shard's record appears once its files are complete, so the unfinished shards are known from these
records, whoever was killed when.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops import paths
from ops.config import ConfigError, UserError, from_json, to_json
from ops.files import NotRegularError, json_bytes
from ops.paths import AnyPath, ObjectPath, P, below, join
from pipelines.exporting.shard_rows import Shard

FORMAT = 1  # of exported folders
PARTIALS = ("", "_export/", "*/")  # where a killed process leaves files half written
FILE = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")


class ExportError(UserError):
    """A folder that holds another export, or other files."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A shard that is done."""

    digest: str  # of the rows that were exported: StoreRows.digest
    rows: int
    files: dict[str, int]  # sizes in bytes, by path below the folder
    index: Any = None  # what the format's index needs of it

    def __post_init__(self) -> None:
        for name, size in self.files.items():
            if not FILE.fullmatch(name) or type(size) is not int:
                raise ConfigError(f"{name!r} is no exported file.")


def records_path(out: P) -> P:
    return join(out, "_export")


def record_path(out: P, shard: Shard) -> P:
    return join(records_path(out), f"{shard.name}.json")


def export_path(out: P) -> P:
    return join(out, "export.json")


def files_of(folder: Path, shard: Shard) -> dict[str, int]:
    """Sizes by path below `folder` of all files whose names begin with the shard's."""
    found = [*folder.glob(f"{shard.name}.*"), *(folder / shard.name).glob("*")]
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in sorted(found)}


def _has(out: AnyPath, shard: Shard, files: Mapping[str, int]) -> bool:
    if isinstance(out, ObjectPath):
        there = {below(each.path, out): each.size for each in paths.list_objects(out / shard.name)}
        for name in files.keys() - there.keys():
            found = paths.file_info(join(out, *name.split("/")))
            there[name] = -1 if found is None else found.size
        return all(there[name] == size for name, size in files.items())
    try:
        return all((out / name).lstat().st_size == size for name, size in files.items())
    except OSError:
        return False


def read_record(out: AnyPath, shard: Shard) -> ShardRecord | None:
    """The record of a shard; None where it is not done, or a file of it is gone."""
    try:
        record = from_json(ShardRecord, paths.read_json_at(record_path(out, shard), follow=False))
    except (FileNotFoundError, NotRegularError, ValueError, KeyError, TypeError, ConfigError):
        return None  # it is made again
    return record if _has(out, shard, record.files) else None


def write_record(out: AnyPath, shard: Shard, record: ShardRecord) -> None:
    """Note that a shard is done."""
    paths.write_whole(record_path(out, shard), json_bytes(to_json(record)))


def forget_shard(out: AnyPath, shard: Shard, *, keep_files: bool = False) -> None:
    """Remove a shard's record, then its files."""
    paths.remove(record_path(out, shard))
    paths.flush(records_path(out))
    if keep_files:
        return
    for path in list(paths.matching(out, f"{shard.name}.*")):
        paths.remove(path)
    if isinstance(out, ObjectPath):
        for each in paths.list_objects(out / shard.name):
            paths.remove(each.path)
    else:
        shutil.rmtree(out / shard.name, ignore_errors=True)


def check_folder(out: AnyPath, settings: Mapping[str, Any]) -> None:
    """Raise ExportError where the folder holds an export with other settings, or other files."""
    path = export_path(out)
    if not paths.exists(path):
        for other in _others(out):
            raise ExportError(f"{other} is in the way. Name an empty or a new folder for --out.")
        return
    try:
        found = paths.read_json_at(path, follow=False)["settings"]
        differing = [
            f"{n} was {found.get(n)!r}, is {v!r}" for n, v in settings.items() if found.get(n) != v
        ]
    except (ValueError, KeyError, TypeError, AttributeError, NotRegularError) as error:
        raise ExportError(f"{path} cannot be read ({error}). Name another --out.") from error
    if differing:
        raise ExportError(
            f"{out} holds an export with other settings: {'; '.join(differing)}. Name another "
            "--out."
        )


def _others(out: AnyPath) -> Iterator[AnyPath]:
    """What is in a folder apart from what a run leaves that is killed while it begins."""
    begun = f"{export_path(out).name}."  # under a temporary name
    if isinstance(out, ObjectPath):
        for each in paths.list_objects(out):
            if not below(each.path, out).startswith("_export/"):
                yield each.path
        return
    if not out.is_dir():
        if out.exists():
            yield out
        return
    for path in out.iterdir():
        if path != records_path(out) and not path.name.startswith(begun):
            yield path
