#!/usr/bin/env python3
"""Convert a published transformer to a model folder with its tokenizer.

python -m pipelines.import_prior compvis FILE --out DIR

The folder can be given to generate and evaluate. Run again, it does nothing.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import ImportPriorFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(ImportPriorFlags, run, argv, "pipelines.import_prior")


def run(flags: ImportPriorFlags) -> int:
    from pipelines.training import import_prior

    show(import_prior(flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
