"""The files below a prefix of an object store or a folder of a hub, as the store lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ops.object_paths import ObjectPath
from ops.object_store import has_objects, walk_objects
from ops.web_files import list_web, web_info
from ops.web_paths import SourcePath, WebPath
from pipelines.inputs.source_files import FileStatus, remote_status

ZARR = "zarr.json"  # what makes a folder a Zarr group


class RemoteFile(NamedTuple):
    """One file of a remote folder."""

    name: str  # below the folder
    uri: str
    status: FileStatus


def remote_files(folder: SourcePath) -> Iterator[RemoteFile]:
    """Every file below a prefix or a hub's folder, by the names that the store has.

    Empty objects that mark a folder (`lake/`, of which the slash is not seen) are left out.
    Raises ObjectStoreError for a bucket that does not exist, TransientError for a store that does
    not answer, and OSError for what a hub refuses.
    """
    empty: RemoteFile | None = None
    for file in _listed(folder):
        if empty is not None and not file.name.startswith(f"{empty.name}/"):
            yield empty
        empty = None
        if file.status.size:
            yield file
        elif file.name:
            empty = file
    if empty is not None:
        yield empty


def _listed(folder: SourcePath) -> Iterator[RemoteFile]:
    start = len(f"{str(folder).rstrip('/')}/")
    if isinstance(folder, ObjectPath):
        for found in walk_objects(folder):
            uri = str(found.path)
            yield RemoteFile(uri[start:], uri, remote_status(found.size, found.etag))
    elif isinstance(folder, WebPath):
        for each in list_web(folder):
            uri = str(each.path)
            yield RemoteFile(uri[start:], uri, remote_status(each.size, each.etag))


def is_remote_folder(path: SourcePath) -> bool:
    """Whether a prefix has objects, or a hub a folder, of this name; raises as remote_files."""
    if isinstance(path, ObjectPath):
        return has_objects(path)
    return isinstance(path, WebPath) and path.scheme == "hf" and web_info(path).is_folder


def hidden_folder(name: str) -> str | None:
    """The first folder in a name that starts with a dot; None where there is none."""
    parts = name.split("/")[:-1]
    for count, part in enumerate(parts, 1):
        if part.startswith("."):
            return "/".join(parts[:count])
    return None


def zarr_folder(name: str) -> str | None:
    """The folder whose metadata a file of this name is, below another one; else None."""
    folder, _, base = name.rpartition("/")
    return folder if folder and base == ZARR else None
