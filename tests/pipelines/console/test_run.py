import errno
from dataclasses import dataclass

import pytest

from ops.config import ConfigError
from ops.version import __version__
from pipelines.console.run import run_command


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Does a thing."""

    number: int = 1
    """how many"""


def run_raising(error):
    def run(flags):
        raise error

    return run_command(Flags, run, ["--number", "2"], "pipelines.thing")


def test_exit_code_is_what_the_command_returns():
    assert run_command(Flags, lambda flags: flags.number, ["--number", "7"], "pipelines.x") == 7


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("no such size"), 2, "error: no such size"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), 2, "a.png"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), 2, "Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left on device", "c"),
            2,
            "No space left on device. Make room",
        ),
        (OSError(errno.EMFILE, "Too many open files"), 2, "(ulimit -n)"),
        (OSError(errno.EFBIG, "File too large", "d"), 2, "error: d: File too large. Raise"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "e" * 300), 2, "Use a shorter name"),
        (OSError(errno.EINVAL, "Invalid argument", "f"), 2, "error: f: Invalid argument"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "g"), 2, "error: g: Is a directory"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "h/i"), 2, "part of it is a file"),
        (FileNotFoundError("no usable temporary folder"), 2, "no usable temporary folder"),
        (
            ConfigError("\x1b]0;p\x07, line\n2, \u202efeil, \udce9"),
            2,
            r"\x1b]0;p\x07, line\n2, \u202e",
        ),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_errors_of_users_are_one_line_without_a_traceback(error, code, message, capsys):
    assert run_raising(error) == code
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_raising(ZeroDivisionError())
    with pytest.raises(OSError, match="Bad file descriptor"):
        run_raising(OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(OSError, match="image file is truncated"):
        run_raising(OSError("image file is truncated"))


def test_notes_of_an_error_are_lines_below_it(capsys):
    error = ConfigError("no such size")
    error.add_note("line one\nline \x1b two")
    assert run_raising(error) == 2
    assert capsys.readouterr().err == "error: no such size\nline one\nline \\x1b two\n"


def test_help_names_the_command_and_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(Flags, lambda flags: 0, ["--help"], "pipelines.thing")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "python -m pipelines.thing" in text
    assert "how many" in text


def test_version_is_printed_by_every_command(capsys):
    assert run_command(Flags, lambda flags: 1, ["--version"], "pipelines.thing") == 0
    assert capsys.readouterr().out == f"smalti {__version__}\n"


def test_help_of_the_smalti_command_names_it(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/smalti", "thing"])
    with pytest.raises(SystemExit):
        run_command(Flags, lambda flags: 0, ["--help"], "pipelines.thing")
    assert "smalti thing" in capsys.readouterr().out
