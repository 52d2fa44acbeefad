"""Commands that do what no command may, to try the limits of the server and the oracle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


def _print(text: str, code: int) -> int:
    (sys.stderr if code else sys.stdout).write(text)
    return code


COMMANDS: dict[str, Callable[[], object]] = {
    "allocate": lambda: len(bytearray(8 << 30)),
    "fill the disk": lambda: Path("out/file").write_bytes(b"x" * (65 << 20)),
    "write outside": lambda: Path("canary/thesis.txt").write_text("nothing"),
    "remove outside": lambda: Path("canary/folder/letter.txt").unlink(),
    "die": os.abort,
    "escape": lambda: _print("\x1b[31mred\n", 0),
    "turn": lambda: _print("error: \u202egnp\n", 2),
    "two lines": lambda: _print("error: one\nand two\n", 2),
    "no line": lambda: 2,
    "other code": lambda: 3,
    "refuse": lambda: _print("error: no such thing\n", 2),
    "work": lambda: _print("done\n", 0),
}


def main(argv: list[str]) -> int:
    code = COMMANDS[argv[0]]()
    return code if isinstance(code, int) and code < 4 else 0
