#!/usr/bin/env python
"""Generate images with a prior: python -m pipelines.generate --prior RUN --out DIR.

Without --prior, a bundled one is used. An image depends on the recorded settings, the seed and its
number alone, so any run of any worker makes the same one. Run again, the command makes the missing
ones.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.generation import (
    GenerateFlags,
    generate_cascade,
    generate_samples,
    prior_notes,
    with_defaults,
)
from pipelines.jobs import forked_workers


def main(argv: list[str] | None = None) -> int:
    return run_command(GenerateFlags, run, argv, "pipelines.generate", help_notes=prior_notes)


def run(flags: GenerateFlags) -> int:
    """Generate the missing samples, print the outcome; the exit code, 1 if some were given up."""
    with forked_workers(flags.workers == 0):  # before an object store is asked for anything
        flags = with_defaults(flags)
        outcome = (generate_cascade if flags.upscale else generate_samples)(flags)
    show(*outcome.lines)
    return 1 if outcome.num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
