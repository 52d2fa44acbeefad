"""Lists of images: CSV, JSONL or Parquet files with a column of paths, named by the user.

A list is data from elsewhere: what it names is opened for reading, as the user asks by naming it,
and nothing is ever written to it or under its name. A list on a disk may name files of this machine
and URIs; one that is remote may name no file of this machine, only URIs and what lies below its own
folder. A URI may be any that --in takes but for http://, which reaches services of this machine and
its network that trust whoever asks. How many names lead out of the list's own folder is noted.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ops.config import ConfigError
from ops.files import NotRegularError, json_hash
from ops.object_paths import join, scheme_of
from ops.text import printable
from ops.transient_errors import TransientError, retried
from ops.web_paths import SourcePath, WebPath, is_remote, parse_source
from pipelines.inputs.archives import is_archive
from pipelines.inputs.carried import carried
from pipelines.inputs.class_names import LABEL_FIELDS, class_name
from pipelines.inputs.csv_records import HeaderError, csv_records
from pipelines.inputs.entries import MISSING, ListingBuilder
from pipelines.inputs.fields import Fields
from pipelines.inputs.json_lines import json_lines
from pipelines.inputs.parquet import holds_paths, is_table, table_records
from pipelines.inputs.patterns import InputError
from pipelines.inputs.reading import Entry
from pipelines.inputs.source_files import FileStatus, status_of
from pipelines.inputs.table_columns import NoTableImagesError, TableError
from pipelines.inputs.text_lines import NotTextError, text_lines
from pipelines.inputs.thread_map import map_in_threads

#: Columns that hold the paths, in any case; the first that is there.
PATH_COLUMNS = ("file", "path", "file_name", "filename", "image", "image_path", "file_path", "uri")
CSV_SUFFIXES, JSON_SUFFIXES = (".csv", ".tsv"), (".jsonl", ".ndjson")
THREADS = 16
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]{1,17}([eE][+-]?[0-9]{1,2})?")

Record = Mapping[str, Any]
Located = tuple[str, Record]  # a path as the list gives it, and the other columns
Examined = tuple[str, str, Record]  # the same, with the absolute path or the URI between
LabelOf = Callable[[str, str | None], str | None]


def is_path_list(path: SourcePath, fields: Fields) -> bool:
    """Whether a file that the user names is a list of paths and holds no images itself."""
    suffix = path.suffix.lower()
    if suffix in (*CSV_SUFFIXES, *JSON_SUFFIXES):
        return True
    return is_table(path.name) and holds_paths(str(path), _columns(fields))


def add_path_list(
    path: SourcePath, prefix: str, label_of: LabelOf, fields: Fields, builder: ListingBuilder
) -> None:
    """Add the images that a list names: their keys are the paths as it gives them.

    A path is absolute, a URI, or relative to the list's folder. A line without one is skipped, and
    a file that does not exist is an image that is missing. Raises InputError where the list cannot
    be read.
    """
    shown = prefix or path.name
    outside = 0
    rows = _located(path, fields)
    try:
        for where, found, status in map_in_threads(_examined, rows, THREADS):
            if isinstance(found, str):
                builder.skip(f"{shown}:{where}", found)
                continue
            text, file, record = found
            key = _key_of(text)
            key = f"{prefix}/{key}" if prefix else key
            outside += not _is_below(file, path.parent)
            entry = _entry(key, file, status, record, label_of, fields)
            if isinstance(entry, str):
                builder.skip(key, entry)
            else:
                builder.add(entry)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}.") from None
    except (NotRegularError, NotTextError) as error:
        raise InputError(str(error)) from None
    except (HeaderError, NoTableImagesError, TableError) as error:
        raise InputError(f"{printable(path)}: {error}.") from None
    if outside:
        builder.add_unused(shown, f"{outside:,} of its paths lead out of its folder")


def _key_of(text: str) -> str:
    """The key of an image that a list names by a path or a URI: without a scheme, of a URI."""
    if is_remote(text):
        text = text.partition("://")[2]
    return text.lstrip("/").removeprefix("./") or text


def _columns(fields: Fields) -> tuple[str, ...]:
    """The columns that may hold the paths, in lower case where they are not asked for by name."""
    return PATH_COLUMNS if fields.image_column is None else (fields.image_column,)


def _located(path: SourcePath, fields: Fields) -> Iterator[tuple[SourcePath, str, Located | str]]:
    """The list's folder, (row or line, record or the reason why it is none) of each record."""
    suffix = path.suffix.lower()
    if suffix in CSV_SUFFIXES:
        names = tuple(name.lower() for name in _columns(fields))
        records: Iterator[tuple[int, Record | str]] = (
            (number, record if isinstance(record, str) else _typed(record))
            for number, record in csv_records(text_lines(path), names)
        )
    elif suffix in JSON_SUFFIXES:
        records = json_lines(path)
    else:
        records = table_records(str(path))
    for number, record in records:
        yield path.parent, str(number), _with_path(record, fields)


def _with_path(record: Record | str, fields: Fields) -> Located | str:
    """A record's path and its other columns; or why it has no path."""
    if isinstance(record, str):
        return record
    by_name = {name.lower(): name for name in reversed([*record])}
    wanted = _columns(fields)
    name = next((by_name[w.lower()] for w in wanted if w.lower() in by_name), None)
    path = record[name] if name is not None else None
    if not isinstance(path, str) or not path:
        return f"no path in a column {' or '.join(wanted)}"
    return path, {key: value for key, value in record.items() if key != name}


def _typed(record: Mapping[str, str]) -> Record:
    """A line of CSV with its numbers as numbers; 007 is a text."""
    return {name: _number_of(text) for name, text in record.items() if text}


def _number_of(text: str) -> int | float | str:
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def _examined(
    folder: SourcePath, where: str, located: Located | str
) -> tuple[str, Examined | str, FileStatus | OSError | None]:
    """One record with its file's status; or why it names no file."""
    if isinstance(located, str):
        return where, located, None
    text, others = located
    try:
        file = _file_of(folder, text)
    except ValueError as error:
        return where, str(error), None
    try:
        return where, (text, file, others), retried(lambda: status_of(file), file)
    except OSError as error:
        return where, (text, file, others), error
    except TransientError as error:
        if not file.startswith(("https://", "http://")):
            raise
        return where, f"unreachable: {error}", None


def _file_of(folder: SourcePath, text: str) -> str:
    """The path or URI that a list in `folder` names; ValueError where it may not, or names none."""
    if "\0" in text:
        raise ValueError("a path with a NUL character")
    if scheme_of(text) is not None:
        return str(_uri_of(folder, text))
    if isinstance(folder, Path):
        return os.path.normpath(os.path.join(folder, text))
    name = posixpath.normpath(text)
    if name.startswith(("/", "../")) or name in (".", ".."):
        raise ValueError("a path out of the folder of a list that is remote")
    try:
        return str(folder / name if isinstance(folder, WebPath) else join(folder, name))
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _uri_of(folder: SourcePath, text: str) -> SourcePath:
    try:
        path = parse_source(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if isinstance(path, WebPath) and path.scheme == "http":
        own = isinstance(folder, WebPath) and (folder.scheme, folder.host) == ("http", path.host)
        if not own:
            raise ValueError("http:// is not read from a list: name https://, or copy the file")
    return path


def _is_below(file: str, folder: SourcePath) -> bool:
    return file.startswith(os.path.join(str(folder), ""))


def _entry(
    key: str,
    file: str,
    status: FileStatus | OSError | None,
    record: Record,
    label_of: LabelOf,
    fields: Fields,
) -> Entry | str:
    """The image of one record; or why it has none."""
    size, etag = 0, MISSING  # of one that cannot be examined: its row will name the error
    if isinstance(status, FileStatus):
        if not status.is_regular:
            return "not a regular file"
        if is_archive(file):
            return "an archive, and no image: name it for --in"
        size, etag, _ = status
    named = _label_in(record, fields) if fields.labels else (None, None)
    others = {name: value for name, value in record.items() if name != named[0]}
    found = carried(others, fields.carry)
    label = label_of(key, named[1])
    if etag != MISSING and (label, *found) != (None, None, None):
        # What the list says goes into the index with the image: it is part of the content.
        etag = f"{etag}-{json_hash([label, *found])[:16]}"
    return Entry(key, file, None, size, etag, label, *found)


def _label_in(record: Record, fields: Fields) -> tuple[str | None, str | None]:
    """The column with the class of a record, and the class."""
    if fields.label_column is None:
        by_name = {name.lower(): name for name in reversed([*record])}
        name = next((by_name[field] for field in LABEL_FIELDS if field in by_name), None)
    else:
        name = fields.label_column
        name = name if name in record else name.lower()  # CSV's names are in lower case
    value = record.get(name) if name is not None else None
    if not isinstance(value, str) and type(value) is not int:
        return name, None
    return name, class_name(str(value).encode(errors="replace"))
