"""Running a command: typed flags, errors without tracebacks, exit codes."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import shutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import tyro

from ops.config import UserError, check_flags
from ops.disk_errors import disk_error_message, is_of_machine
from ops.storage_options import parse_options, storage_options
from ops.version import __version__
from pipelines.console.arguments import check_output, check_words
from pipelines.console.grouped_flags import (
    CONFIG,
    flattened,
    grouped,
    replaces_default,
)
from pipelines.console.interrupts import Interrupted, interrupts_raised
from pipelines.console.path_flags import source_flags, uri_flags
from pipelines.console.settings_file import SETTINGS, read_settings, settings_text
from pipelines.console.terminal import (
    OutputClosedError,
    open_streams,
    output_checked,
    show,
    show_error,
    show_traceback,
)

Flags = TypeVar("Flags")
#: Errors of the user or the machine, printed as one line: a traceback would add nothing.
PLAIN_ERRORS = (UserError, FileNotFoundError, PermissionError, NotADirectoryError)
NARROWEST = 40  # columns
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
OUTPUT_CLOSED = 141  # what shells report of a program that SIGPIPE ended


def run_command(
    flags: type[Flags],
    run: Callable[[Flags], int],
    argv: list[str] | None,
    prog: str,
    help_notes: Callable[[Sequence[str]], str] | None = None,
    lists: Mapping[str, Callable[[], Sequence[str]]] = MappingProxyType({}),
) -> int:
    """Parse `argv` (default: the process's own) into `flags`, call `run`, return its exit code.

    `help_notes` is called with the words of `argv` where they ask for help, and gives lines to be
    shown below the description. The class's EXAMPLE, words of a command line, is shown at the end
    of the help. `--version` alone prints the version; a word alone that is in `lists`, as
    --list-recipes, the lines that its function returns. `--config FILE` gives defaults of flags. A
    folder --out gets a settings.yaml with the flags when the command ends or is interrupted. Errors
    and signals are what exit_code_of makes of them.
    """
    words = sys.argv[1:] if argv is None else argv

    def parse_and_run() -> int:
        if words == ["--version"]:
            show(f"smalti {__version__}")
            return 0
        if len(words) == 1 and words[0] in lists:
            show(*lists[words[0]]())
            return 0
        check_words(words, uri_flags(flags), source_flags(flags))
        parsed = _parse(flags, words, prog, help_notes)
        check_flags(parsed)
        check_output(parsed)
        with storage_options(parse_options(getattr(parsed, "storage_option", ()))):
            try:
                code = run(parsed)
            except KeyboardInterrupt:
                _write_settings(prog, parsed)
                raise
            _write_settings(prog, parsed)
            return code

    return exit_code_of(parse_and_run)


def _write_settings(command: str, flags: Any) -> None:
    """Write settings.yaml where --out is a folder, unless it is there."""
    out = getattr(flags, "out", None)
    if out is None or getattr(flags, "dry_run", False):
        return
    from ops.paths import holds, is_folder, write_whole

    data = settings_text(command, flags).encode()
    try:
        if is_folder(out) and not holds(out / SETTINGS, data):
            write_whole(out / SETTINGS, data)
    except OSError as error:
        if error.errno not in READ_ONLY:  # a folder that was only read need not be writable
            raise


def exit_code_of(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit code of what it raises.

    A UserError, a path that cannot be used, a full, read-only or failing disk become one line on
    stderr and exit code 2, with the error's notes below it; Ctrl-C becomes 130, SIGTERM 143, SIGHUP
    129, and standard output that nobody reads 141. Anything else is a bug and keeps its traceback.
    """
    open_streams()
    try:
        with interrupts_raised():
            return run()
    except OutputClosedError:
        return OUTPUT_CLOSED
    except KeyboardInterrupt as interrupt:
        show_error("interrupted; run the same command again to resume")
        return interrupt.exit_code if isinstance(interrupt, Interrupted) else 130
    except Exception as error:
        line = plain_message(error)
        if line is None:
            sys.excepthook = show_traceback
            raise
        notes = [line for note in getattr(error, "__notes__", []) for line in note.splitlines()]
        show_error(f"error: {line}", *notes)
        return 2


def plain_message(error: BaseException) -> str | None:
    """The line to print for an error of the user or the machine; None for a bug."""
    if isinstance(error, OSError) and is_of_machine(error):
        return disk_error_message(error)
    return str(error) if isinstance(error, PLAIN_ERRORS) else None


def _parse(
    flags: type[Flags],
    words: Sequence[str],
    prog: str,
    help_notes: Callable[[Sequence[str]], str] | None,
) -> Flags:
    helps = not {"-h", "--help"}.isdisjoint(words)
    description = inspect.getdoc(flags) or ""
    if help_notes is not None and helps:
        description = f"{description}\n\n{help_notes(words)}"
    by_smalti = os.path.basename(sys.argv[0]) == "smalti"
    prog = prog.replace("pipelines.", "smalti ") if by_smalti else f"python -m {prog}"
    defaults = {} if helps else _defaults(flags, words)
    with output_checked(), _wide_enough():
        try:
            return flattened(
                flags,
                tyro.cli(
                    grouped(flags, defaults),
                    args=words,
                    prog=prog,
                    description=description,
                    config=(tyro.conf.OmitArgPrefixes,),
                ),
            )
        except SystemExit as end:  # it has printed the help or what is wrong with the flags
            stopped = end
        example = getattr(flags, "EXAMPLE", None)
        if helps and example:
            show("example:", f"  {prog} {example}")
    raise stopped


def _defaults(flags: type[Any], words: Sequence[str]) -> dict[str, Any]:
    """What --config gives, by field, but for repeated flags that `words` have themselves."""
    file = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == CONFIG:
            file = following
        elif word.startswith(f"{CONFIG}="):
            file = word.partition("=")[2]
    if file is None:
        return {}
    found, hints = read_settings(Path(file), flags), typing.get_type_hints(flags, None, None, True)
    return {n: v for n, v in found.items() if not replaces_default(hints[n], n, words)}


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Let tyro take a narrower terminal for one of NARROWEST columns: its layout would not end."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before
