"""Annotation files, JSONL or CSV: each line names its image's file.

A line that names a file and nothing else means that the image has no annotation: such an image has
a row in the track, an image without any line has not. The rest of a line is parsed by each
condition (pipelines/conditioning).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipelines.inputs.listing import InputError

T = TypeVar("T")


@dataclass
class Lines:
    """The parsed lines of a file, by the image's name as the lines give it, in their order."""

    found: dict[str, list[Any]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (where, why) of unusable lines


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T | None]) -> Lines:
    """Parse the lines of a .jsonl file, or of a .csv file with a head.

    `parse` returns None for a line without an annotation, and raises ValueError for a line that
    cannot be used, which is listed. Raises InputError where the file is missing, or none of its
    lines can be used.
    """
    lines = Lines()
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            table = csv.DictReader(file) if path.suffix.lower() == ".csv" else None
            lines_of: Iterable[str | dict[Any, Any]] = file if table is None else table
            for number, line in enumerate(lines_of, 1):
                if isinstance(line, str) and not line.strip():
                    continue
                try:
                    name, item = _parsed(line, parse)
                except ValueError as error:
                    where = number if table is None else table.line_num
                    lines.bad.append((f"{path.name}:{where}", str(error)))
                    continue
                held = lines.found.setdefault(name, [])
                if item is not None:
                    held.append(item)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Name a JSONL file.") from None
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}.") from None
    if not lines.found:
        first = "".join(f" {where}: {why}." for where, why in lines.bad[:1])
        raise InputError(f"{path}: none of its lines can be used.{first}")
    return lines


def _parsed(
    line: str | dict[Any, Any], parse: Callable[[dict[str, Any]], T | None]
) -> tuple[str, T | None]:
    try:
        line = json.loads(line) if isinstance(line, str) else line
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(line, dict) or not isinstance(line.get("file"), str) or not line["file"]:
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
