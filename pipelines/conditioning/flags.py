"""The flag `generate --condition NAME=PATH`, as inputs of conditions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.config import ConfigError
from pipelines.conditioning.conditioning import CONDITIONINGS, FileConditioning
from pipelines.conditioning.files import ConditionFiles
from prior.conditions import CONDITIONS, Conditions


def file_conditioning(name: str) -> type[FileConditioning[Any, Any]] | None:
    """The class of a condition that is given by files; None for other names."""
    if name not in CONDITIONINGS:
        return None
    kind = CONDITIONINGS[name]
    return kind if issubclass(kind, FileConditioning) else None


def accepted_files(conditions: Conditions) -> list[str]:
    """The names of the conditions that a prior takes from files."""
    # Besides its own conditions, any prior takes those that none is trained with.
    own = [part.name for part in conditions.parts]
    names = [*own, *(name for name in CONDITIONINGS if name not in CONDITIONS)]
    return [name for name in names if file_conditioning(name) is not None]


def gives_known_codes(name: str) -> bool:
    """Whether the condition's files give codes of the sample itself."""
    kind = file_conditioning(name)
    return kind is not None and kind.known_codes


def parse_conditions(texts: Sequence[str], conditions: Conditions) -> tuple[ConditionFiles, ...]:
    """The inputs that the flag names for a prior of these conditions, sorted by name.

    Raises ConfigError for a condition that this prior does not take, InputError where there are no
    files.
    """
    parts, takes = {part.name: part for part in conditions.parts}, accepted_files(conditions)
    found: dict[str, ConditionFiles] = {}
    for text in texts:
        name, where = _split(text)
        kind = file_conditioning(name)
        if kind is None or name not in takes:
            raise ConfigError(_why_not(name, takes))
        if name in found:
            raise ConfigError(f"--condition names {name!r} twice: name a folder of files instead.")
        found[name] = kind.parse(where, parts.get(name))
    _check_known_codes(sorted(found))
    return tuple(found[name] for name in sorted(found))


def parse_known_codes(texts: Sequence[str]) -> tuple[ConditionFiles, ...]:
    """Those inputs that give codes of the samples, for any prior: it keeps these codes, trained
    with the condition or not.

    Raises ConfigError and InputError as parse_conditions does.
    """
    found = []
    for name, where in map(_split, texts):
        kind = file_conditioning(name)
        if kind is not None and kind.known_codes:
            found.append(kind.parse(where, None))
    return tuple(found)


def path_of_condition(texts: Sequence[str], name: str) -> Path | None:
    """The absolute path that the flag names for a condition; None where it does not name it."""
    return next((where for named, where in map(_split, texts) if named == name), None)


def _split(text: str) -> tuple[str, Path]:
    """The name and the absolute path of NAME=PATH; raises ConfigError for anything else."""
    name, _, where = text.partition("=")
    if not where:
        raise ConfigError(f"--condition must be NAME=PATH, found {text!r}.")
    return name, Path(os.path.abspath(where))


def _check_known_codes(names: Sequence[str]) -> None:
    known = [name for name in names if gives_known_codes(name)]
    if len(known) > 1:
        raise ConfigError(f"--condition {' and '.join(known)} both give known codes. Name one.")


def _why_not(name: str, takes: Sequence[str]) -> str:
    instead = CONDITIONINGS[name].not_by_file if name in CONDITIONINGS else ""
    return instead or (
        f"This prior does not take the condition {name!r}, but {', '.join(takes)}. For others it "
        "must be trained with them: train_prior --conditions."
    )
