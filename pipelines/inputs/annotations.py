"""Annotation files, JSONL or CSV: each line names its image's file.

A line that names a file and nothing else means that the image has no annotation: such an image has
a row in the track, an image without any line has not. The rest of a line is parsed by each
condition (pipelines/conditioning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ops.files import NotRegularError
from ops.text import printable
from pipelines.inputs.csv_records import HeaderError, csv_records
from pipelines.inputs.json_lines import NO_OBJECT, json_lines
from pipelines.inputs.patterns import InputError
from pipelines.inputs.text_lines import NotTextError, text_lines

T = TypeVar("T")
CSV_SUFFIXES = (".csv", ".tsv")
FIELDS_NAMED = 8  # in an error


@dataclass
class Lines:
    """The parsed lines of a file, by the image's name as the lines give it, in their order."""

    found: dict[str, list[Any]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (where, why) of unusable lines


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T | None]) -> Lines:
    """Parse the lines of a .jsonl file, or of a .csv or .tsv file with a header.

    `parse` returns None for a line without an annotation, and raises ValueError for a line that
    cannot be used, which is listed. Raises InputError where the file is missing or not one of text,
    where none of its lines can be used, and where none has an annotation but some have fields that
    are not read.
    """
    lines = Lines()
    unread: set[str] = set()
    is_csv = path.suffix.lower() in CSV_SUFFIXES
    try:
        for number, line in (_csv_lines if is_csv else json_lines)(path):
            try:
                name, item = _parsed(line, parse)
            except ValueError as error:
                lines.bad.append((f"{path.name}:{number}", str(error)))
                continue
            held = lines.found.setdefault(name, [])
            if item is not None:
                held.append(item)
            elif isinstance(line, dict):
                unread.update(key for key, value in line.items() if value not in (None, ""))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Name a JSONL file.") from None
    except (NotRegularError, NotTextError) as error:
        raise InputError(str(error)) from None
    except HeaderError as error:
        raise InputError(f"{path}: {error}.") from None
    if not lines.found:
        first = "".join(f" {where}: {why}." for where, why in lines.bad[:1])
        raise InputError(f"{path}: none of its lines can be used.{first}")
    unread.discard("file")
    if unread and not any(lines.found.values()):
        shown = ", ".join(repr(printable(key, 60)) for key in sorted(unread)[:FIELDS_NAMED])
        raise InputError(f"{path}: no line has an annotation; fields that are not read: {shown}.")
    return lines


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    return csv_records(text_lines(path), ("file",))


def _parsed(
    line: dict[str, Any] | str, parse: Callable[[dict[str, Any]], T | None]
) -> tuple[str, T | None]:
    """The name of the image and what `parse` makes of a line; ValueError for one that is none."""
    if isinstance(line, str):
        raise ValueError('no object with a "file"' if line == NO_OBJECT else line)
    if not isinstance(line.get("file"), str) or not line["file"]:
        raise ValueError('no object with a "file"')
    return line["file"], parse(line)


def are_numbers(values: Any, count: int) -> bool:
    """Whether a parsed value is a list of `count` finite numbers, below 1e9 in size."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        and all(abs(v) < 1e9 and math.isfinite(v) for v in values)
    )
