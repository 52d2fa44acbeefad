#!/usr/bin/env python
"""Export a code store to files of other libraries: python -m pipelines.export store STORE --to F.

Run again, the command resumes, or exports what is new.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import ExportFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(ExportFlags, run, argv, "pipelines.export")


def run(flags: ExportFlags) -> int:
    """Export what --out lacks, print the outcome; the exit code."""
    from pipelines.exporting import export_store
    from pipelines.jobs import forked_workers

    with forked_workers(flags.workers == 0):
        outcome = export_store(flags)
    show(*outcome.lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
