"""What reaches a terminal, and terminals, pipes and files that cannot show it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ops.disk_errors import DiskError
from pipelines.console import progress_bar, show, show_error
from pipelines.console.terminal import OutputClosedError, show_traceback

ROOT = Path(__file__).parents[3]
HOSTILE = "\x1b]0;title\x07 [red]a[/] \u202egnp.\u2028\x9b31m\udce9 [/nothing]"
SHOWN = r"\x1b]0;title\x07 [red]a[/] \u202egnp.\u2028\x9b31m\udce9 [/nothing]"

#: A command in a process of its own; what it does is the first argument.
COMMAND = """
import sys
from dataclasses import dataclass
from pipelines.console import progress_bar, run_command, show
import tyro

@dataclass(frozen=True)
class Flags:
    '''Does a thing.'''
    what: tyro.conf.Positional[str]

def run(flags):
    if flags.what == "bug":
        raise ZeroDivisionError(HOSTILE)
    with progress_bar("image") as bar:
        job = bar.add_task("encoding " + HOSTILE, total=8, note=HOSTILE, bad=0)
        bar.update(job, completed=5, bad=2)
    for _ in range(3000 if flags.what == "long" else 1):
        show("done → – é " + HOSTILE)
    return 0

sys.exit(run_command(Flags, run, None, "pipelines.thing"))
""".replace("HOSTILE", ascii(HOSTILE))


def in_shell(
    redirected: str, *words: str, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit code, output and errors of the command, called with words and redirections in bash."""
    line = f'timeout 60 "$0" -c "$1" {" ".join(words)} {redirected}'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, sys.executable, COMMAND],
        cwd=ROOT, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_lines_are_escaped_and_no_markup_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    show(HOSTILE, 3)
    show_error(HOSTILE)
    with progress_bar("image") as bar:
        bar.add_task(HOSTILE, total=1, note=HOSTILE)
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n3\n"
    assert err.splitlines()[0] == SHOWN
    assert err.splitlines()[1].startswith(f"{SHOWN} 0/1")
    assert err.splitlines()[1].endswith(f"  {SHOWN}")


def test_traceback_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError(HOSTILE)
    show_traceback(type(error), error, None)
    assert capsys.readouterr().err == f"ValueError: {SHOWN}\n"


@pytest.mark.parametrize("columns", ["1", "7", "300"])
def test_bar_on_a_terminal_shows_any_text(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main, side = pty.openpty()
    with open(side, "w") as terminal, open(main, "rb") as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", columns)
        with progress_bar("image") as bar:
            bar.add_task(HOSTILE, total=8, note=HOSTILE, bad=0)
        os.write(side, b"END")
        text = b""
        while not text.endswith(b"END"):
            text += screen.read1()
    for acting in (b"\x07", b"\x1b]", "\u202e".encode(), "\x9b".encode()):
        assert acting not in text
    if columns == "300":
        assert SHOWN in re.sub(r"\x1b\[[\d;?]*\w", "", text.decode())


def test_terminal_that_cannot_move_its_cursor_gets_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main, side = pty.openpty()
    with open(side, "w") as terminal, open(main, "rb") as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "dumb")
        with progress_bar("image") as bar:
            bar.add_task("encoding", total=8)
        assert screen.read1().startswith(b"encoding 0/8")


def test_lines_that_cannot_be_written_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as output, open("/dev/full", "w") as errors:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", errors)
        show_error("nobody sees this")
        with pytest.raises(DiskError, match=r"standard output: .*\. Make room"):
            show("a line")
        show("dropped like all that follows")


def test_pipe_that_nobody_reads_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(OutputClosedError):
            show("a line")


@pytest.mark.parametrize(
    ("redirected", "words", "environment", "code", "lines_of_error"),
    [
        ("2>&1 | head -c 1", ["long"], {}, 141, 0),
        (">/dev/full", ["--help"], {"COLUMNS": "1"}, 2, 1),
        (">/dev/full", ["short"], {}, 2, 2),
        (">&- 2>&- <&-", ["long"], {}, 0, 0),
        ("", ["short"], {"PYTHONIOENCODING": "ascii", "COLUMNS": "0", "TERM": "dumb"}, 0, 1),
    ],
)
def test_any_output_will_do(
    redirected: str, words: list[str], environment: dict[str, str], code: int, lines_of_error: int
) -> None:
    found, out, err = in_shell(redirected, *words, environment=environment)
    assert (found, len(err.splitlines())) == (code, lines_of_error), err
    assert "\x1b]" not in out + err


def test_traceback_of_a_bug_is_escaped() -> None:
    code, _, err = in_shell("", "bug")
    assert code == 1
    assert err.splitlines()[-1] == f"ZeroDivisionError: {SHOWN}"
