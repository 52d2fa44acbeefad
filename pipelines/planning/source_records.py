"""What a store keeps of its sources apart from the plan, in its folder _sources.

Of each archive the list of its images, so that an archive that has not changed is not listed again;
and the images that a run has left out, with the reasons. Nothing else of a store depends on these
files: one that is missing or corrupt is made anew.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

from ops import paths
from ops.disk_errors import disk_errors_explained
from ops.object_paths import parent
from ops.paths import AnyPath
from pipelines.inputs import MEMBER_SCHEMA, Members
from pipelines.store import (
    SOURCES,
    StoreError,
    checked_table,
    corrupt_as,
    description_metadata,
    open_parquet,
    parquet_bytes,
    read_description,
)

#: Images that are not planned. Sizes and copies are kept so that they are not read again.
LEFT_OUT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("etag", pa.large_string(), nullable=False),
        pa.field("reason", pa.large_string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("same_as", pa.large_string()),  # the key of the image with the same bytes
        pa.field("same_as_etag", pa.large_string()),
    ]
)


def left_out_path(root: AnyPath) -> AnyPath:
    return root / SOURCES / "left_out.parquet"


def write_left_out(root: AnyPath, table: pa.Table, selection: dict[str, Any]) -> None:
    """Record the images that this run leaves out, LEFT_OUT_SCHEMA, and by which flags.

    Without any, the record of an earlier run is removed.
    """
    path = left_out_path(root)
    if not len(table):
        if paths.exists(path):
            paths.remove(path)
        return
    metadata = description_metadata({"selection": selection})
    data = parquet_bytes(table.cast(LEFT_OUT_SCHEMA).replace_schema_metadata(metadata))
    _write_if_changed(path, data)


def read_left_out(root: AnyPath) -> pa.Table:
    """What the last run has left out, LEFT_OUT_SCHEMA; empty where there is no intact record."""
    path = left_out_path(root)
    found = _read(path, LEFT_OUT_SCHEMA)
    return LEFT_OUT_SCHEMA.empty_table() if found is None else found[0]


class ArchiveLists:
    """A MemberCache in a store's folder _sources: one file for each archive."""

    def __init__(self, root: AnyPath) -> None:
        self._folder = root / SOURCES / "archives"

    def read(self, path: str, etag: str, description: str) -> Members | None:
        found = _read(self._path(path), MEMBER_SCHEMA)
        if found is None:
            return None
        table, about = found
        if [about.get(name) for name in ("path", "etag", "fields")] != [path, etag, description]:
            return None
        try:
            skipped = [(str(name), str(reason)) for name, reason in about["skipped"]]
            notes = [str(note) for note in about["notes"]]
            defect = about["defect"]
            return Members(table, skipped, notes, defect and str(defect), bool(about["complete"]))
        except (KeyError, TypeError, ValueError):
            return None

    def write(self, path: str, etag: str, description: str, members: Members) -> None:
        about = {
            "path": path,
            "etag": etag,
            "fields": description,
            "skipped": members.skipped,
            "notes": members.notes,
            "defect": members.defect,
            "complete": members.complete,
        }
        table = members.table.replace_schema_metadata(description_metadata(about))
        _write_if_changed(self._path(path), parquet_bytes(table))

    def _path(self, path: str) -> AnyPath:
        # A name of ours: those of archives are no names of files in a store.
        return self._folder / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.parquet"


def _read(path: AnyPath, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]] | None:
    try:
        with corrupt_as(lambda error: StoreError(str(error))):
            file = open_parquet(path)
            about = read_description(path, file.schema_arrow.metadata)
            return checked_table(file.read(), schema), about
    except StoreError:
        return None


def _write_if_changed(path: AnyPath, data: bytes) -> None:
    # Explained here: whoever lists an archive takes an OSError for one of the archive.
    with disk_errors_explained(path):
        if not paths.holds(path, data):
            paths.make_folder(parent(path))
            paths.write_whole(path, data)
