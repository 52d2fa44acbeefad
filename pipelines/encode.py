#!/usr/bin/env python3
"""Encode images into a code store: python -m pipelines.encode --in IMAGES --out codes.zarr.

Run again, the command resumes, or adds what is new.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show, show_error
from pipelines.flags import EncodeFlags, check_encode_flags


def main(argv: list[str] | None = None) -> int:
    return run_command(EncodeFlags, encode, argv, "pipelines.encode")


def encode(flags: EncodeFlags) -> int:
    """Encode what is not in the store, print the outcome; the exit code, 1 if too many failed."""
    check_encode_flags(flags)
    from pipelines.conditioning import track_kinds
    from pipelines.jobs import forked_workers
    from pipelines.tracks import encode_tracks

    with forked_workers(flags.workers == 0):
        outcome = encode_tracks(flags, track_kinds())
    show(*outcome.lines)
    if outcome.error is not None:
        show_error(f"error: {outcome.error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
