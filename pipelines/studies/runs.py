"""A study's runs: done one by one, each kept whole, so that what is there is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from ops.files import exclusive_lock, json_hash, write_json
from pipelines.inputs import list_input
from pipelines.studies.context import HELD_OUT, StudyContext
from pipelines.studies.study import Study, StudyError
from pipelines.training import pin_settings

SHARED = "shared.json"  # in a study's folder: how long it took to make what all runs share


class Run(NamedTuple):
    """What one (variant, seed) came to."""

    variant: str
    seed: int
    metrics: dict[str, float]
    seconds: float  # that the sitting took in which it was finished
    date: str  # of its end


def run_file(out: Path, variant: str, seed: int) -> Path:
    """Where a run's figures are kept."""
    return out / "results" / f"{variant}-{seed}.json"


def read_run(path: Path) -> Run:
    """What `write_run` wrote."""
    return Run(**json.loads(path.read_text()))


def do_runs(
    name: str, study: Study, context: StudyContext, seeds: Sequence[int], say: Callable[[str], None]
) -> list[Run]:
    """All runs of the seeds, by variant and then by seed; those that are missing are done first.

    All variants of the first seed come before the next one's, so that a study that was stopped
    has something to compare. `say` is told what is being done.
    Raises StudyError where there is nothing to do, TrainingError where `bench.out` was begun with
    other settings or photographs, LockedError while another process is at it.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise StudyError("--seeds must name each seed once, and one at least.")
    wanted = [(variant, seed) for seed in seeds for variant in study.variants]
    with exclusive_lock(context.out / "study.lock"):
        pin_settings(
            context.out, {"study": name, **_photographs(context), **study.settings(context)}
        )
        missing = [each for each in wanted if not run_file(context.out, *each).is_file()]
        if missing:
            say("what all runs share")
            _prepare(study, context)
        for variant, seed in missing:
            say(f"run {wanted.index((variant, seed)) + 1} of {len(wanted)}: {variant}, seed {seed}")
            write_run(context.out, _timed(study, context, variant, seed))
    found = [read_run(run_file(context.out, *each)) for each in wanted]
    return sorted(found, key=lambda run: (study.variants.index(run.variant), run.seed))


def write_run(out: Path, run: Run) -> None:
    """Keep a run's figures; the file appears whole."""
    write_json(run_file(out, run.variant, run.seed), run._asdict())


def shared_seconds(out: Path) -> float:
    """What all runs share took so many seconds, in all sittings that came to its end."""
    path = out / SHARED
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


def _prepare(study: Study, context: StudyContext) -> None:
    started = time.perf_counter()
    study.prepare(context)
    total = shared_seconds(context.out) + time.perf_counter() - started
    write_json(context.out / SHARED, {"seconds": round(total, 1)})


def _timed(study: Study, context: StudyContext, variant: str, seed: int) -> Run:
    started = time.perf_counter()
    metrics = study.measure(context, variant, seed)
    seconds = round(time.perf_counter() - started, 1)
    return Run(variant, seed, metrics, seconds, date.today().isoformat())


def _photographs(context: StudyContext) -> dict[str, Any]:
    """Which photographs they are: figures on others would not belong beside these."""
    keys = sorted(entry.key for entry in list_input(context.data).entries)
    return {"photographs": len(keys), "names": json_hash(keys)[:16], "held_out": HELD_OUT}
