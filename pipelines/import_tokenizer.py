#!/usr/bin/env python3
"""Convert a published tokenizer to a model folder.

python -m pipelines.import_tokenizer KIND FILE --out DIR

The folder can be given to every command that takes a tokenizer. Run again, it does nothing.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import ImportTokenizerFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(ImportTokenizerFlags, run, argv, "pipelines.import_tokenizer")


def run(flags: ImportTokenizerFlags) -> int:
    from pipelines.training import import_tokenizer

    show(import_tokenizer(flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
