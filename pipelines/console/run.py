"""Running a command: typed flags, errors without tracebacks, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from ops.config import UserError, check_flags
from ops.disk_errors import REMEDIES, disk_error_message
from ops.version import __version__
from pipelines.console.interrupts import Interrupted, interrupts_raised

Flags = TypeVar("Flags")
#: Errors of the user or the machine, printed as one line: a traceback would add nothing.
PLAIN_ERRORS = (UserError, FileNotFoundError, PermissionError, NotADirectoryError)


def run_command(
    flags: type[Flags], run: Callable[[Flags], int], argv: list[str] | None, prog: str
) -> int:
    """Parse `argv` (default: the process's own) into `flags`, call `run`, return its exit code.

    A UserError, a missing or forbidden file, a full, read-only or failing disk become one line on
    stderr and exit code 2; Ctrl-C becomes 130, SIGTERM 143 and SIGHUP 129. Anything else is a bug
    and keeps its traceback. `--version` alone prints the version.
    """
    if (sys.argv[1:] if argv is None else argv) == ["--version"]:
        print(f"smalti {__version__}")
        return 0
    by_smalti = os.path.basename(sys.argv[0]) == "smalti"
    prog = prog.replace("pipelines.", "smalti ") if by_smalti else f"python -m {prog}"
    parsed = tyro.cli(flags, args=argv, prog=prog)
    try:
        check_flags(parsed)
        with interrupts_raised():
            return run(parsed)
    except PLAIN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        print(f"error: {disk_error_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return interrupt.exit_code if isinstance(interrupt, Interrupted) else 130
