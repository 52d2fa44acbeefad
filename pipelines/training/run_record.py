"""run.json in a run folder: the settings that a run was started with and must be resumed with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ops.config import parse_json, to_json
from ops.files import write_json
from ops.precision import Precision
from ops.text import printable
from pipelines.training.recipe import LOOP_FIELDS, PriorRecipe, TokenizerRecipe
from pipelines.training.run_folder import TrainingError

RUN_RECORD = "run.json"
#: Increased whenever runs of an older version cannot be resumed: 3 since the optimizer's state of a
#: prior lies in files of its own.
FORMAT = 3


def run_settings(recipe: TokenizerRecipe | PriorRecipe, **more: Any) -> dict[str, Any]:
    """The settings that must not change between the attempts of one run, as JSON."""
    fixed = {name: value for name, value in to_json(recipe).items() if name not in LOOP_FIELDS}
    return {"recipe": fixed, **more}


def pin_settings(run: Path, settings: Mapping[str, Any], *, begun: bool = True) -> None:
    """Write `settings` to run.json of a new run; of an old run, check that they are the same.

    A run that is not `begun`, since it has no checkpoint yet, takes the new settings. The caller
    holds the run's lock. Raises TrainingError where the run was written by another version of
    Smalti, or with other settings, naming those that differ.
    """
    path, current = run / RUN_RECORD, json.loads(json.dumps({"format": FORMAT, **settings}))
    if not path.exists() or not begun:
        write_json(path, current)
        return
    before = _read(path)
    found = before.get("format", 1)
    if found != FORMAT:
        age = "an older" if type(found) is int and found < FORMAT else "a newer"
        raise TrainingError(
            f"{run} was written by {age} version of Smalti (format {_shown(found)}, this one has "
            f"{FORMAT}) and cannot be resumed. Start a new run in another --out."
        )
    before.pop("precision", None)  # see pin_precision
    _check_same(run, before, current)


def pin_precision(run: Path, precision: Precision) -> None:
    """Record in the run.json of pin_settings what precision the workers' devices led to.

    Raises TrainingError where the run has taken steps in another one.
    """
    path = run / RUN_RECORD
    record = _read(path)
    if record.get("precision") is None:
        write_json(path, {**record, "precision": precision})
    else:
        _check_same(run, record, {**record, "precision": precision})


def _check_same(run: Path, before: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    differing = list(_differences(before, current))
    if differing:
        raise TrainingError(
            f"{run} was started with other settings (recorded -> asked): {'; '.join(differing)}. "
            "Resume it with the same settings, or use another --out."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(path.read_bytes())
    except ValueError as error:
        raise TrainingError(f"{path} is not JSON ({error}). Restore it from a copy.") from None
    if not isinstance(record, dict):
        raise TrainingError(f"{path} holds no JSON object. Restore it from a copy.")
    return record


def _differences(before: Any, current: Any, name: str = "") -> Iterator[str]:
    """The settings that differ, as "recipe.batch_size: 8 -> 16"."""
    if isinstance(before, dict) and isinstance(current, dict):
        for key in sorted(set(before) | set(current)):
            inside = f"{name}.{key}" if name else key
            yield from _differences(before.get(key), current.get(key), inside)
    elif before != current:
        yield f"{printable(name, 100)}: {_shown(before)} -> {_shown(current)}"


def _shown(value: Any) -> str:
    return printable(json.dumps(value), 100)
