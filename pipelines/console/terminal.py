"""What commands print: every line goes through `show` or `show_error`, and is escaped there."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

from ops.disk_errors import DiskError, disk_error_message
from ops.text import printable

LIMIT = 2000  # characters of a line


class OutputClosedError(Exception):
    """Nobody reads standard output any more, as after `| head`."""


@contextlib.contextmanager
def output_checked() -> Iterator[None]:
    """Flush what the body prints on standard output.

    Raises OutputClosedError where its reader has gone, DiskError where it cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        raise OutputClosedError from None
    except OSError as error:
        _drop(sys.stdout)
        raise DiskError(f"standard output: {disk_error_message(error)}") from error


def show(*lines: object) -> None:
    """Print lines on standard output; what is in them does not act on the terminal.

    Raises what output_checked raises.
    """
    with output_checked():
        sys.stdout.write(_text(lines))


def show_error(*lines: object) -> None:
    """The same on standard error; where that cannot be written, nothing is printed."""
    try:
        sys.stderr.write(_text(lines))
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` that escapes the error's message as well."""
    text = "".join(traceback.format_exception(kind, error, trace))
    show_error(*text.removesuffix("\n").split("\n"))


def open_streams() -> None:
    """Make standard output and error usable: characters that their encoding lacks are escaped, and
    where they are closed, as by `>&-`, what is printed is dropped."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file to be opened would be what libraries print to
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _text(lines: tuple[object, ...]) -> str:
    return "".join(f"{printable(line, LIMIT)}\n" for line in lines)


def _drop(stream: TextIO) -> None:
    """Let what `stream` still holds vanish, so that flushing it at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        number = stream.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
