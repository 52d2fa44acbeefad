"""Check a whole code store against its checksums and plan: python -m pipelines.verify STORE."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.console import PathOrURI, StorageOptions, run_command, show
from pipelines.tracks import verify_store


@dataclass(frozen=True, kw_only=True)
class VerifyFlags:
    """Read a whole code store again: every file against its checksum, every row against the index,
    the index against the plan.

    Prints the file and the rows of everything corrupt or missing, and what to do about it; then the
    exit code is 1. Of a store without problems, prints what the rows were made with: the model of
    the GPU or CPU, the precision and versions, and how many rows each has.
    """

    store: Annotated[PathOrURI, tyro.conf.Positional]
    """The code store, for instance codes.zarr or s3://bucket/codes.zarr."""
    storage_option: StorageOptions = ()


def main(argv: list[str] | None = None) -> int:
    return run_command(VerifyFlags, verify, argv, "pipelines.verify")


def verify(flags: VerifyFlags) -> int:
    """Print every problem and a summary; the exit code, 1 if there are problems."""
    problems, contents, made_with = verify_store(flags.store)
    if problems:
        show(*problems)
        show(f"{flags.store}: {len(problems)} problem{'s' * (len(problems) > 1)} in {contents}")
        return 1
    show(*made_with, f"{flags.store}: {contents}, no problems")
    return 0


if __name__ == "__main__":
    sys.exit(main())
