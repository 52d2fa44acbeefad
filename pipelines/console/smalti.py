"""The `smalti` command: `smalti encode ...` is `python -m pipelines.encode ...`."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import operator
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from ops.version import __version__
from pipelines.console.grouped_flags import grouped
from pipelines.console.run import exit_code_of
from pipelines.console.terminal import output_checked, show, show_error

SHELLS = ("bash", "zsh")
FOLDER = Path(__file__).parents[1]


def main(argv: list[str] | None = None) -> int:
    """Run one command with the words that follow its name; returns its exit code.

    Without a name, or with --help, list the commands. An unknown name is one line on stderr and
    exit code 2.
    """
    words = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        show(*_overview())
        return 0
    if words[0] == "--version":
        show(f"smalti {__version__}")
        return 0
    if words[0] == "--print-completion":
        return _print_completion(words[1:])
    name = words[0].replace("-", "_")
    names = commands()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]}?" if close else "`smalti` lists the commands."
        show_error(f"error: no command {words[0]!r}. {hint}")
        return 2
    code: int = importlib.import_module(f"pipelines.{name}").main(words[1:])
    return code


def _print_completion(words: list[str]) -> int:
    """Print the script that completes the commands and their flags in a shell."""
    if len(words) != 1 or words[0] not in SHELLS:
        show_error(f"error: --print-completion needs one of {', '.join(SHELLS)}.")
        return 2
    flags = importlib.import_module("pipelines.flags").COMMAND_FLAGS
    parts: list[Any] = [
        Annotated[grouped(kind, {}), tyro.conf.subcommand(name, description="")]
        for name, kind in flags.items()
    ]
    union: Any = functools.reduce(operator.or_, parts)
    with output_checked(), contextlib.suppress(SystemExit):  # tyro prints it and exits
        tyro.cli(
            union,
            prog="smalti",
            args=["--tyro-print-completion", words[0]],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return 0


def commands() -> dict[str, str]:
    """Name -> what it does, for every module of pipelines/ with a `main`; imports none of them."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = _summary(ast.get_docstring(tree) or "")
    return found


def _summary(docstring: str) -> str:
    """The first sentence of a command's docstring, without how the command is called."""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    sentence = re.split(r": python -m|\.(?:\s|$)", paragraph)[0]
    sentence = re.sub(r"^`python -m [\w.]+`: ", "", sentence)
    return sentence[:1].upper() + sentence[1:]


def _overview() -> list[str]:
    found = commands()
    width = max(map(len, found))
    lines = [f"  {name:{width}}  {summary}" for name, summary in found.items()]
    return [
        "usage: smalti COMMAND ...    (the same as python -m pipelines.COMMAND ...)",
        "",
        *lines,
        "",
        "smalti COMMAND --help lists its flags; smalti --version prints the version.",
        "Completion of commands and flags, in this shell or in its start-up file:",
        *(f'  eval "$(smalti --print-completion {shell})"' for shell in SHELLS),
    ]


if __name__ == "__main__":
    sys.exit(main())
