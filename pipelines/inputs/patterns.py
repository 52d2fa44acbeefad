"""Which files and folders the values of --in name: paths, brace lists and globs."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from ops.config import UserError
from ops.text import printable

MAX_PATTERN = 1000  # characters: the time for nested braces is quadratic
MAX_FILES = 1_000_000  # that one value may name
NAMED = 3  # missing files that an error names
RANGE = re.compile(r"(-?[0-9]{1,19})\.\.(-?[0-9]{1,19})")
SPECIAL = re.compile(r"[{*?\[]")


class InputError(UserError):
    """An input that cannot be listed."""


class Source(NamedTuple):
    """One file or folder to list."""

    path: Path  # absolute
    key: str  # what the keys of its images begin with, before a "/"; "" for nothing


def input_sources(inputs: Path | Sequence[Path]) -> list[Source]:
    """The files and folders that some values name, each once, in their order.

    A value is a path, a brace list (`data-{000..099}.tar`) or a glob (`shards/*.parquet`, `**` for
    folders at any depth); one that exists as it is written is a path. The keys of one path alone
    have no prefix. Files of a pattern have their path below its fixed folder as prefix, so that
    keys stay what they are when shards are added; several paths have their base names. Raises
    InputError for a pattern that names nothing, or not all of a brace list, and for two prefixes
    that are equal.
    """
    values = [inputs] if isinstance(inputs, Path) else list(inputs)
    if not values:
        raise InputError("--in names nothing. Name a folder of images, tar files or a table.")
    found: dict[str, Source] = {}
    for value in values:
        if is_pattern(value):
            named = _expanded(str(value))
        else:
            path = Path(os.path.abspath(value))
            named = [Source(path, path.name if len(values) > 1 else "")]
        for source in named:
            found.setdefault(str(source.path), source)
    _check_prefixes(list(found.values()))
    return list(found.values())


def is_pattern(value: Path) -> bool:
    """Whether a value is a brace list or a glob, and no path that exists."""
    return SPECIAL.search(str(value)) is not None and not os.path.lexists(str(value))


def fixed_path(value: Path) -> Path:
    """A path that must exist for a value to name anything: its own, or a pattern's folder."""
    return Path(_fixed_folder(str(value))) if is_pattern(value) else value


def _fixed_folder(pattern: str) -> str:
    match = SPECIAL.search(pattern)
    assert match is not None
    return os.path.abspath(os.path.dirname(pattern[: match.start()]))


def _expanded(pattern: str) -> list[Source]:
    """The files of one pattern, those of a glob sorted."""
    shown = printable(pattern)
    parts = _braces(pattern, shown)
    paths: list[str] = []
    missing: list[str] = []
    for part in parts:
        if os.path.lexists(part):
            paths.append(part)
        elif glob.has_magic(part):
            matches = sorted(islice(glob.iglob(part, recursive=True), MAX_FILES + 1))
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
    folder = _fixed_folder(pattern)
    absolute = (os.path.abspath(path) for path in paths)
    return [Source(Path(path), os.path.relpath(path, folder)) for path in absolute]


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
    seen: dict[str, Path] = {}
    for source in sources:
        other = seen.setdefault(source.key, source.path)
        if other != source.path:
            raise InputError(
                f"{printable(other)} and {printable(source.path)} have one name, so that keys of "
                "their images would be equal. Name a folder above both, or rename one."
            )
