"""run.json in a run folder: the settings that a run was started with and must be resumed with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.config import to_json
from ops.files import write_json
from pipelines.training.loop import TrainingError
from pipelines.training.recipe import LOOP_FIELDS, PriorRecipe, TokenizerRecipe

#: Increased whenever runs of an older version cannot be resumed: 2 since train_state.pt names a
#: prior's optimizer entries by parameter.
FORMAT = 2


def run_settings(recipe: TokenizerRecipe | PriorRecipe, **more: Any) -> dict[str, Any]:
    """The settings that must not change between the attempts of one run, as JSON."""
    fixed = {name: value for name, value in to_json(recipe).items() if name not in LOOP_FIELDS}
    return {"recipe": fixed, **more}


def pin_settings(run: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings` to run.json of a new run; of an old run, check that they are the same.

    Raises TrainingError where the run was written by another version of Smalti, or with other
    settings, naming those that differ.
    """
    path, current = run / "run.json", json.loads(json.dumps({"format": FORMAT, **settings}))
    if not path.exists():
        write_json(path, current)
        return
    before = json.loads(path.read_text())
    found = before.get("format", 1)
    if found != FORMAT:
        age = "an older" if found < FORMAT else "a newer"
        raise TrainingError(
            f"{run} was written by {age} version of Smalti (format {found}, this one has "
            f"{FORMAT}) and cannot be resumed. Start a new run in another --out."
        )
    differing = [
        f"{name} was {before.get(name)!r}, is {current.get(name)!r}"
        for name in sorted(set(before) | set(current))
        if before.get(name) != current.get(name)
    ]
    if differing:
        raise TrainingError(
            f"{run} was started with other settings: {'; '.join(differing)}. "
            "Resume it with the same settings, or use another --out."
        )
