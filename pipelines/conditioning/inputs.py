"""What `generate --condition NAME=PATH` names: files that tell the samples in turn."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.config import ConfigError
from ops.files import file_hash
from ops.images import ImageError
from pipelines.inputs import PoseParser, content_hash, list_input, parse_box, read_entry, read_lines
from prior.conditions import Boxes, Conditions, Keypoints

#: Known codes that stay as they are: any prior can go on from them.
HALF = "half"
#: Conditions that need no telling, or that --labels tells.
NOT_BY_FILE = ("sos", "class", "coordinates")
NAMED = 5  # files named in an error


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionFiles:
    """One condition and where it comes from. Plain values: it travels to the workers."""

    name: str
    path: Path  # what was named
    items: tuple[Any, ...]  # files; of boxes and keypoints what lines say of a picture
    digest: str  # of all their bytes: with the order, what decides what sample k is told


def parse_conditions(texts: Sequence[str], conditions: Conditions) -> tuple[ConditionFiles, ...]:
    """What the flag names, in the order of the names.

    Raises ConfigError for what this prior cannot be told, InputError where there are no files.
    """
    known = [part.name for part in conditions.parts if part.name not in NOT_BY_FILE]
    found: dict[str, ConditionFiles] = {}
    for text in texts:
        name, _, where = text.partition("=")
        if not where:
            raise ConfigError(f"--condition must be NAME=PATH, found {text!r}.")
        if name not in (*known, HALF):
            raise ConfigError(_why_not(name, known))
        if name in found:
            raise ConfigError(f"--condition names {name!r} twice: name a folder of files instead.")
        part = next((part for part in conditions.parts if part.name == name), None)
        path = Path(os.path.abspath(where))
        if isinstance(part, Boxes | Keypoints):
            found[name] = _lines(part, path)
        else:
            found[name] = _files(name, path)
    if HALF in found and "inpaint" in found:
        raise ConfigError("--condition half and inpaint both say which part is known. Name one.")
    return tuple(found[name] for name in sorted(found))


def _why_not(name: str, known: Sequence[str]) -> str:
    if name == "class":
        return "Classes are told by --labels, not by --condition."
    there = ", ".join([*known, HALF])
    return (
        f"This prior cannot be told {name!r}, but {there}. What else it is to be told, it must be "
        "trained with: train_prior --conditions."
    )


def _files(name: str, path: Path) -> ConditionFiles:
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


def _lines(part: Boxes | Keypoints, path: Path) -> ConditionFiles:
    """Lines of a JSONL file as encode's --track reads them, by the picture that they name."""
    parse = parse_box if isinstance(part, Boxes) else _pose_parser(part)
    lines = read_lines(path, parse)
    bad = [f"{where}: {why}" for where, why in lines.bad]
    if isinstance(part, Boxes):
        known = set(part.category_names)
        bad += [
            f"{name}: no category {box.category!r}, but {', '.join(part.category_names[:NAMED])}"
            for name, boxes in lines.found.items()
            for box in boxes
            if box.category not in known
        ]
    _refuse(part.name, bad, len(bad) + sum(map(len, lines.found.values())), "lines")
    items = tuple(tuple(found) for found in lines.found.values())
    return ConditionFiles(name=part.name, path=path, items=items, digest=file_hash(path)[:32])


def _pose_parser(part: Keypoints) -> PoseParser:
    return PoseParser(part.point_names or None, None if part.point_names else part.num_points)


def _refuse(name: str, bad: list[str], count: int, what: str) -> None:
    if bad:
        raise ConfigError(
            f"--condition {name}: {len(bad)} of {count} {what} cannot be used: "
            f"{'; '.join(bad[:NAMED])}. Mend or remove them."
        )
