#!/usr/bin/env python
"""Evaluate a model on held-out data: python -m pipelines.evaluate KIND MODEL --data --out.

Writes the metrics as JSON, with the settings they were measured with.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import EvaluateFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(EvaluateFlags, run, argv, "pipelines.evaluate")


def run(flags: EvaluateFlags) -> int:
    """Measure, write the JSON file, print the metrics; returns the exit code."""
    from pipelines.training import evaluate

    metrics = evaluate(flags)
    for key, reason in metrics.get("unreadable", {}).items():
        show(f"unreadable: {key!r}: {reason}")
    show(", ".join(f"{name} {_shown(value)}" for name, value in metrics.items()))
    return 0


def _shown(value: float | str | dict[str, str]) -> str:
    if isinstance(value, dict):
        return str(len(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
