"""The `smalti` command: every command by name, none imported before it is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ops.version import __version__
from pipelines.console.smalti import commands, main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_overview_lists_every_command_with_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, summary in commands().items():
        assert summary
        assert [line for line in lines if line.split()[:1] == [name]], name
    assert {"encode", "verify", "train_prior", "generate"} <= commands().keys()
    assert "recipes" not in commands()  # a module without a command
    assert max(map(len, lines)) <= 120


def test_unknown_command_is_one_line_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["encod", "--in", "x"]) == 2
    assert capsys.readouterr().err == "error: no command 'encod'. Did you mean encode?\n"
    assert main(["zzzz"]) == 2
    assert capsys.readouterr().err == "error: no command 'zzzz'. `smalti` lists the commands.\n"


def test_command_gets_the_words_after_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "not a code store" in capsys.readouterr().err
    assert main(["train-prior", "--version"]) == 0
    assert capsys.readouterr().out == f"smalti {__version__}\n"


def test_overview_imports_no_command() -> None:
    code = "import sys, pipelines.console.smalti as s; s.main([]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "ray", "pyarrow", "zarr", "PIL", "numpy"}
