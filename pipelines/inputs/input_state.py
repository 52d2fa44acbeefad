"""The state of an input: a text that is another one when any of its files has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ops.files import json_hash
from ops.web_paths import SourcePath
from pipelines.inputs.archives import is_archive
from pipelines.inputs.fields import Fields
from pipelines.inputs.path_lists import is_path_list
from pipelines.inputs.patterns import input_sources
from pipelines.inputs.source_files import disk_status

MAX_FILES = 20_000  # more are not examined for this: they are listed instead


def input_state(inputs: Sequence[SourcePath], fields: Fields) -> str | None:
    """Where the files of the input of list_sources lie, how large they are, and when they were
    written.

    None where that does not tell whether its images have changed, or takes as long as listing them:
    for what is not on a disk, lists of paths, folders with links to folders, and more than
    MAX_FILES files. Raises InputError as input_sources does.
    """
    found: list[tuple[str, str, str]] = []
    try:
        for source in input_sources(inputs):
            path = source.path
            if not isinstance(path, Path):
                return None
            named_file = not path.is_dir()
            if named_file and not is_archive(path.name):
                return None
            if named_file and is_path_list(path, fields):
                return None
            for file, status in [(str(path), os.stat(path))] if named_file else _files(path):
                if file is None or len(found) == MAX_FILES:
                    return None
                # A name need not be UTF-8, which the hash is of.
                found.append((ascii(source.key), ascii(file), disk_status(status).etag))
    except OSError:
        return None
    return json_hash(sorted(found))


def _files(folder: Path) -> Iterator[tuple[str | None, os.stat_result]]:
    """Every file below a folder with its status; None in place of a link to a folder."""
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if not entry.is_dir():
                    yield entry.path, entry.stat()
                elif entry.is_symlink():
                    yield None, entry.stat()
                else:
                    waiting.append(entry.path)
