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

from ops import disk
from ops.config import ConfigError, UserError, from_json, to_json
from ops.files import NotRegularError, fsync_path, read_json, write_json
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


def records_path(out: Path) -> Path:
    return out / "_export"


def record_path(out: Path, shard: Shard) -> Path:
    return records_path(out) / f"{shard.name}.json"


def export_path(out: Path) -> Path:
    return out / "export.json"


def files_of(folder: Path, shard: Shard) -> dict[str, int]:
    """Sizes by path below `folder` of all files whose names begin with the shard's."""
    paths = [*folder.glob(f"{shard.name}.*"), *(folder / shard.name).glob("*")]
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in sorted(paths)}


def _has(out: Path, files: Mapping[str, int]) -> bool:
    try:
        return all((out / name).lstat().st_size == size for name, size in files.items())
    except OSError:
        return False


def read_record(out: Path, shard: Shard) -> ShardRecord | None:
    """The record of a shard; None where it is not done, or a file of it is gone."""
    try:
        record = from_json(ShardRecord, read_json(record_path(out, shard), follow=False))
    except (FileNotFoundError, NotRegularError, ValueError, KeyError, TypeError, ConfigError):
        return None  # it is made again
    return record if _has(out, record.files) else None


def write_record(out: Path, shard: Shard, record: ShardRecord) -> None:
    """Note that a shard is done."""
    write_json(record_path(out, shard), to_json(record))


def forget_shard(out: Path, shard: Shard, *, keep_files: bool = False) -> None:
    """Remove a shard's record, then its files."""
    disk.disk.unlink(record_path(out, shard))
    fsync_path(records_path(out))
    if not keep_files:
        for path in out.glob(f"{shard.name}.*"):
            disk.disk.unlink(path)
        shutil.rmtree(out / shard.name, ignore_errors=True)


def check_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Raise ExportError where the folder holds an export with other settings, or other files."""
    path = export_path(out)
    if not path.exists():
        others = _others(out) if out.is_dir() else [out] if out.exists() else []
        for other in others:
            raise ExportError(f"{other} is in the way. Name an empty or a new folder for --out.")
        return
    try:
        found = read_json(path, follow=False)["settings"]
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


def _others(out: Path) -> Iterator[Path]:
    """What is in a folder apart from what a run leaves that is killed while it begins."""
    begun = f"{export_path(out).name}."  # under a temporary name
    for path in out.iterdir():
        if path != records_path(out) and not path.name.startswith(begun):
            yield path
