#!/usr/bin/env python
"""Evaluate a model, samples or a store: python -m pipelines.evaluate KIND MODEL --data --out.

Writes the metrics as JSON, with the settings they were measured with.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipelines.console import run_command, show
from pipelines.flags import EvaluateFlags

if TYPE_CHECKING:
    from pipelines.evaluation import Measurements


def main(argv: list[str] | None = None) -> int:
    return run_command(EvaluateFlags, run, argv, "pipelines.evaluate")


def run(flags: EvaluateFlags) -> int:
    """Measure, write the JSON file, print the metrics; the exit code, 1 if none was measured."""
    from pipelines.evaluation import evaluate

    measured = evaluate(flags)
    for key, reason in measured.facts.get("unreadable", {}).items():
        show(f"unreadable: {key!r}: {reason}")
    for reason, names in _by_reason(measured).items():
        show(f"without {', '.join(names)}: {reason}")
    facts = {name: value for name, value in measured.facts.items() if not isinstance(value, list)}
    shown = [f"{name} {_shown(value)}" for name, value in facts.items()]
    shown += [f"{metric.name} {_shown(metric.value)}" for metric in measured.metrics]
    show(", ".join(shown))
    return 0 if measured.metrics else 1


def _by_reason(measured: Measurements) -> dict[str, list[str]]:
    """The names of absent metrics by the reason."""
    found: dict[str, list[str]] = {}
    for absent in measured.absent:
        found.setdefault(absent.reason, []).append(absent.name)
    return found


def _shown(value: float | str | dict[str, str]) -> str:
    if isinstance(value, dict):
        return str(len(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
