"""Which files and folders the values of --in name: paths, brace lists and globs."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple, cast

from braceexpand import braceexpand
from fsspec.utils import glob_translate

from ops.config import UserError
from ops.object_paths import AnyPath
from ops.text import printable
from ops.web_paths import SourcePath, WebPath, is_remote, parse_source
from pipelines.inputs.remote_folders import is_remote_folder, remote_files
from pipelines.inputs.source_files import status_of
from pipelines.inputs.thread_map import map_in_threads

MAX_PATTERN = 1000  # characters: the time for nested braces is quadratic
MAX_FILES = 1_000_000  # that one value may name
NAMED = 3  # missing files that an error names
RANGE = re.compile(r"(-?[0-9]{1,19})\.\.(-?[0-9]{1,19})")
SPECIAL = re.compile(r"[{*?\[]")
BRACES = re.compile(r"\{")
THREADS = 16  # that ask whether files exist


class InputError(UserError):
    """An input that cannot be listed."""


class Source(NamedTuple):
    """One file or folder to list."""

    path: SourcePath  # absolute
    key: str  # what the keys of its images begin with, before a "/"; "" for nothing


def input_sources(inputs: SourcePath | Sequence[SourcePath]) -> list[Source]:
    """The files and folders that some values name, each once, in their order.

    A value is a path or URI, a brace list (`data-{000..099}.tar`) or a glob (`shards/*.parquet`,
    `**` for folders at any depth); one that exists as it is written is a path. Of a web server,
    whose folders cannot be listed, there are brace lists and no globs. The keys of one path alone
    have no prefix. Files of a pattern have their path below its fixed folder as prefix, so that
    keys stay what they are when shards are added; several paths have their base names. Raises
    InputError for a pattern that names nothing, or not all of a brace list, and for two prefixes
    that are equal.
    """
    values = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    if not values:
        raise InputError("--in names nothing. Name a folder of images, tar files or a table.")
    found: dict[str, Source] = {}
    for value in values:
        if is_pattern(value):
            named = _expanded(value)
        else:
            path = _absolute(value)
            named = [Source(path, path.name if len(values) > 1 else "")]
        for source in named:
            found.setdefault(str(source.path), source)
    _check_prefixes(list(found.values()))
    return list(found.values())


def is_pattern(value: SourcePath) -> bool:
    """Whether a value is a brace list or a glob, and no path that exists."""
    special = BRACES if _is_web(value) else SPECIAL
    if special.search(str(value)) is None:
        return False
    _fixed_folder(value)  # before a bucket of such a name is looked for
    return not _exists(str(value))


def fixed_path(value: SourcePath) -> AnyPath | None:
    """A path that must exist for a value to name anything: its own, or a pattern's folder.

    None for a file at a server, which no machine has to mount.
    """
    if isinstance(value, WebPath):
        return None
    if not is_pattern(value):
        return value
    return cast(AnyPath, parse_source(_fixed_folder(value)))


def _is_web(value: SourcePath) -> bool:
    """Whether a value is at a web server, where ? begins a query and nothing can be listed."""
    return isinstance(value, WebPath) and value.scheme != "hf"


def _absolute(value: SourcePath) -> SourcePath:
    return Path(os.path.abspath(value)) if isinstance(value, Path) else value


def _exists(text: str) -> bool:
    """Whether there is a file, folder or prefix of exactly this name."""
    if not is_remote(text):
        return os.path.lexists(text)
    try:
        status_of(text)
    except FileNotFoundError:
        try:
            return is_remote_folder(parse_source(text))
        except FileNotFoundError:
            return False
    except OSError as error:
        raise InputError(f"{printable(text)} cannot be read: {error.strerror}.") from None
    return True


def _fixed_folder(pattern: SourcePath) -> str:
    """The folder, of a pattern of a disk an absolute one, above the first part with wildcards."""
    text = str(pattern)
    match = (BRACES if _is_web(pattern) else SPECIAL).search(text)
    assert match is not None
    folder = os.path.dirname(text[: match.start()])
    if isinstance(pattern, Path):
        return os.path.abspath(folder)
    if folder.count("/") < (4 if text.startswith("hf:") else 2):
        raise InputError(
            f"{printable(text)}: no wildcards are read in the name of a bucket, host or data set."
        )
    return folder


def _expanded(pattern: SourcePath) -> list[Source]:
    """The files of one pattern, those of a glob sorted."""
    text = str(pattern)
    shown = printable(text)
    folder = _fixed_folder(pattern)
    parts = _braces(text, shown)
    paths: list[str] = []
    missing: list[str] = []
    if isinstance(pattern, Path):
        found: Iterable[bool] = map(_exists, parts)
    else:  # each is a request
        found = map_in_threads(_exists, [(part,) for part in parts], THREADS)
    for part, exists in zip(parts, found, strict=True):
        if exists:
            paths.append(part)
        elif glob.has_magic(part) and not _is_web(pattern):
            matches = _matches(part)
            if not matches:
                raise InputError(f"{printable(part)} matches no file. Correct it, or quote it.")
            paths += matches
        else:
            missing.append(part)
    if missing:
        names = ", ".join(printable(name, 200) for name in missing[:NAMED])
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        raise InputError(
            f"{shown}: {len(missing):,} of its {len(parts):,} files do not exist: {names}{more}. "
            "Fetch them, or name only those that are there."
        )
    if len(paths) > MAX_FILES:
        raise InputError(f"{shown} names more than {MAX_FILES:,} files. Name a folder of them.")
    if isinstance(pattern, Path):
        absolute = (os.path.abspath(path) for path in paths)
        return [Source(Path(path), os.path.relpath(path, folder)) for path in absolute]
    return [Source(parse_source(path), path.removeprefix(f"{folder}/")) for path in paths]


def _matches(part: str) -> list[str]:
    """The files and folders that a glob matches, sorted: a store's prefixes are folders."""
    if not is_remote(part):
        return sorted(islice(glob.iglob(part, recursive=True), MAX_FILES + 1))
    pattern = parse_source(part)
    folder = _fixed_folder(pattern)
    try:
        wanted = re.compile(glob_translate(part.removeprefix(f"{folder}/")))
    except ValueError:
        raise InputError(f"{printable(part)}: ** stands for whole folders alone.") from None
    found: set[str] = set()
    for name, _, _ in remote_files(parse_source(folder)):
        if len(found) > MAX_FILES:
            break
        words = name.split("/")
        names = ("/".join(words[:count]) for count in range(1, len(words) + 1))
        shown = takewhile(lambda name: not name.rpartition("/")[2].startswith("."), names)
        found.update(f"{folder}/{name}" for name in shown if wanted.match(name))
    return sorted(found)


def _braces(pattern: str, shown: str) -> list[str]:
    """A pattern's brace lists written out."""
    too_many = InputError(f"{shown} names more than {MAX_FILES:,} files. Name fewer.")
    if len(pattern) > MAX_PATTERN:
        raise InputError(f"{shown} has more than {MAX_PATTERN:,} characters.")
    # The expansion makes a list of each range before it gives the first name.
    lengths = [abs(int(last) - int(first)) + 1 for first, last in RANGE.findall(pattern)]
    if max(lengths, default=0) > MAX_FILES:
        raise too_many
    if "," not in pattern and math.prod(lengths) > MAX_FILES:
        raise too_many
    try:
        parts = list(islice(braceexpand(pattern, escape=False), MAX_FILES + 1))
    except ValueError:  # UnbalancedBracesError
        raise InputError(f"{shown} does not exist, and its braces are not closed.") from None
    except RecursionError:
        raise InputError(f"{shown}: its braces are nested too deeply.") from None
    if len(parts) > MAX_FILES:
        raise too_many
    return parts


def _check_prefixes(sources: list[Source]) -> None:
    """Raise InputError where keys of two sources would begin alike."""
    seen: dict[str, SourcePath] = {}
    for source in sources:
        other = seen.setdefault(source.key, source.path)
        if other != source.path:
            raise InputError(
                f"{printable(other)} and {printable(source.path)} have one name, so that keys of "
                "their images would be equal. Name a folder above both, or rename one."
            )
