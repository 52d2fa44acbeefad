"""Tar files that nobody wants listed: which there are, and the images of one, in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ops.text import is_utf8
from ops.web_paths import SourcePath
from pipelines.inputs.archives import archive_members, format_address
from pipelines.inputs.carried import Carry
from pipelines.inputs.fields import Fields
from pipelines.inputs.listing import is_source_folder
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.reading import Entry
from pipelines.inputs.remote_folders import remote_files
from pipelines.inputs.source_files import status_of


def tars_below(folder: SourcePath) -> list[tuple[str, str]] | None:
    """(name below it, path or URI) of each tar file below a folder; None for a file.

    Raises InputError for what does not exist.
    """
    if not is_source_folder(folder):
        return None
    if isinstance(folder, Path):
        inside = (path for path in folder.rglob("*.tar") if path.is_file())
        return [(path.relative_to(folder).as_posix(), str(path)) for path in inside]
    return [(name, uri) for name, uri, _ in remote_files(folder) if name.endswith(".tar")]


def tar_entries(path: str, key: str) -> Iterator[Entry]:
    """The images of the tar file at `path`, in the order they are stored, as a listing has them.

    Headers are read as far as the iteration gets; content is not. `key` is the tar's own. Raises
    what archive_members raises, after all images before the defect.
    """
    etag = status_of(path).etag
    for member in archive_members(path, MemberLog(), Fields(carry=Carry(names=frozenset()))):
        if is_utf8(member.name):
            address = format_address(path, member.place)
            yield Entry(f"{key}/{member.name}", address, member.place, member.size, etag, None)
