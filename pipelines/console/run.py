"""What every command shares: typed flags, errors without tracebacks, exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from ops.config import UserError

Flags = TypeVar("Flags")
#: Mistakes of the user's or his machine's: their message says all, a traceback would add nothing.
PLAIN_ERRORS = (UserError, FileNotFoundError, PermissionError, NotADirectoryError)
DISK_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "make it writable",
    errno.EIO: "look after the disk",
}


def run_command(
    flags: type[Flags], run: Callable[[Flags], int], argv: list[str] | None, prog: str
) -> int:
    """Parse `argv` (default: the process's own) into `flags`, call `run`, return its exit code.

    A UserError, a file that is missing or not permitted, a full, read-only or failing disk become
    one line on stderr and exit code 2; Ctrl-C becomes 130. Anything else is a defect of ours and
    keeps its traceback.
    """
    parsed = tyro.cli(flags, args=argv, prog=f"python -m {prog}")
    try:
        return run(parsed)
    except PLAIN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        remedy = DISK_ERRORS[error.errno]
        print(f"error: {error}; {remedy} and run the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
