"""The inputs of one condition as plain values: image files, or the lines of an annotation file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ops.config import ConfigError
from ops.files import file_hash
from ops.images import ImageError
from ops.paths import AnyPath
from pipelines.inputs import content_hash, list_input, read_entry, read_lines

T = TypeVar("T")
NAMED = 5  # files named in an error


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionFiles:
    """One condition's inputs. Plain values: they travel to the workers."""

    name: str
    path: AnyPath  # as `--condition NAME=PATH` gives it, absolute
    items: tuple[Any, ...]  # image files, images in memory, or for each image the parsed lines
    digest: str  # hash of all bytes: with the items' order, it decides sample k's input


def image_files(name: str, path: Path) -> ConditionFiles:
    """A file, or the files of a folder; raises ConfigError where one cannot be read."""
    entries = list_input(path).entries
    bad: list[str] = []
    digest = hashlib.sha256()
    for entry in entries:
        try:
            digest.update(content_hash(read_entry(entry)()).encode())
        except ImageError as error:
            bad.append(f"{entry.key}: {error}")
    _refuse(name, bad, len(entries), "files")
    return ConditionFiles(
        name=name, path=path, items=tuple(entries), digest=digest.hexdigest()[:32]
    )


def annotation_lines(
    name: str,
    path: Path,
    parse: Callable[[dict[str, Any]], T | None],
    check: Callable[[T], str | None] = lambda item: None,
) -> ConditionFiles:
    """The lines of a JSONL file as encode's --track reads them, one item an image.

    `check` returns why this prior cannot take a parsed line, or None. Raises ConfigError where a
    line cannot be used.
    """
    lines = read_lines(path, parse)
    bad = [f"{where}: {why}" for where, why in lines.bad]
    for image, found in lines.found.items():
        bad += [f"{image}: {why}" for item in found if (why := check(item)) is not None]
    _refuse(name, bad, len(lines.bad) + sum(map(len, lines.found.values())), "lines")
    items = tuple(tuple(found) for found in lines.found.values())
    return ConditionFiles(name=name, path=path, items=items, digest=file_hash(path)[:32])


def _refuse(name: str, bad: Sequence[str], count: int, what: str) -> None:
    if bad:
        raise ConfigError(
            f"--condition {name}: {len(bad)} of {count} {what} cannot be used: "
            f"{'; '.join(bad[:NAMED])}. Correct or remove them."
        )
