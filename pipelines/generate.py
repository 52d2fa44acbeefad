#!/usr/bin/env python
"""Generate images with a prior: python -m pipelines.generate --prior RUN --out DIR.

Without --prior, a bundled one is used. An image depends on the recorded settings, the seed and its
number alone, so any run of any worker makes the same one. Run again, the command makes the missing
ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines.console import run_command, show
from pipelines.flags import GenerateFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(GenerateFlags, run, argv, "pipelines.generate", help_notes=help_notes)


def help_notes(words: Sequence[str]) -> str:
    """What the priors take and recommend, where the words name one: to read them takes seconds."""
    if not any(word.partition("=")[0] in ("--prior", "--upscale") for word in words):
        return "With --prior NAME|RUN, --help also says what this prior and the bundled ones take."
    from pipelines.generation import prior_notes

    return prior_notes(words)


def run(flags: GenerateFlags) -> int:
    """Generate the missing samples, print the outcome; the exit code, 1 if some were given up."""
    from pipelines.generation import generate_cascade, generate_samples, with_defaults
    from pipelines.jobs import forked_workers

    with forked_workers(flags.workers == 0):  # before an object store is asked for anything
        flags = with_defaults(flags)
        outcome = (generate_cascade if flags.upscale else generate_samples)(flags)
    show(*outcome.lines)
    return 1 if outcome.num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
