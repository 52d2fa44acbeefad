"""A study's runs: done one after the other, each recorded in a file and not done again."""

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

SHARED = "shared.json"  # in a study's folder: seconds that Study.prepare took


class Run(NamedTuple):
    """The result of one (variant, seed)."""

    variant: str
    seed: int
    metrics: dict[str, float]
    seconds: float  # of the attempt that finished it
    date: str  # of its end


def run_file(out: Path, variant: str, seed: int) -> Path:
    """The file of a run's metrics."""
    return out / "results" / f"{variant}-{seed}.json"


def read_run(path: Path) -> Run:
    """The run in a file of `write_run`."""
    return Run(**json.loads(path.read_text()))


def do_runs(
    name: str,
    study: Study,
    context: StudyContext,
    seeds: Sequence[int],
    progress: Callable[[str], None],
) -> list[Run]:
    """Do the missing runs; all runs of the seeds, ordered by variant and then by seed.

    All variants of one seed are done before the next seed, so that a stopped study can be compared.
    `progress` is called with a line of progress.
    Raises StudyError for missing or repeated seeds, TrainingError if `context.out` was begun with
    other settings or photographs, LockedError if another process is working in it.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise StudyError("--seeds must name at least one seed, and each seed once.")
    wanted = [(variant, seed) for seed in seeds for variant in study.variants]
    with exclusive_lock(context.out / "study.lock"):
        pin_settings(
            context.out, {"study": name, **_photographs(context), **study.settings(context)}
        )
        missing = [run for run in wanted if not run_file(context.out, *run).is_file()]
        if missing:
            progress("preparing what all runs share")
            _prepare(study, context)
        for variant, seed in missing:
            progress(
                f"run {wanted.index((variant, seed)) + 1} of {len(wanted)}: {variant}, seed {seed}"
            )
            write_run(context.out, _timed(study, context, variant, seed))
    found = [read_run(run_file(context.out, *run)) for run in wanted]
    return sorted(found, key=lambda run: (study.variants.index(run.variant), run.seed))


def write_run(out: Path, run: Run) -> None:
    """Write a run's metrics, atomically."""
    write_json(run_file(out, run.variant, run.seed), run._asdict())


def shared_seconds(out: Path) -> float:
    """Seconds that Study.prepare took, summed over its completed calls."""
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
    """Which photographs: runs on different ones cannot be compared."""
    keys = sorted(entry.key for entry in list_input(context.data).entries)
    return {"photographs": len(keys), "names": json_hash(keys)[:16], "held_out": HELD_OUT}
