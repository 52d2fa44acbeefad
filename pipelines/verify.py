"""Check a whole code store against its checksums and plan: python -m pipelines.verify STORE."""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import VerifyFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(VerifyFlags, verify, argv, "pipelines.verify")


def verify(flags: VerifyFlags) -> int:
    """Print every problem and a summary; the exit code, 1 if there are problems."""
    from pipelines.tracks import verify_store

    problems, contents, made_with = verify_store(flags.store)
    if problems:
        show(*problems)
        show(f"{flags.store}: {len(problems)} problem{'s' * (len(problems) > 1)} in {contents}")
        return 1
    show(*made_with, f"{flags.store}: {contents}, no problems")
    return 0


if __name__ == "__main__":
    sys.exit(main())
