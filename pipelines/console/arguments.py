"""Checks of a command line, its words and its paths, before anything is written."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.config import ConfigError

# At the start of a word, or of the value in --flag=value and NAME=value. A path that begins by ./
# is a local one, whatever it is called.
URI = re.compile(r"(?:^|=)\s*([A-Za-z][A-Za-z0-9+.-]*)://")
ADDRESS = "--address"  # of a Ray cluster: the one flag whose value may be a URI


def check_words(words: Sequence[str]) -> None:
    """Raise ConfigError for a URI where a path is expected, and for text that is not UTF-8."""
    for before, word in zip(["", *words], words, strict=False):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{_flag(before)}{word}: not UTF-8. Rename it; or, if it is UTF-8, set "
                "LC_ALL=C.UTF-8."
            ) from None
        uri = URI.search(word)
        if uri and before != ADDRESS and not word.startswith(f"{ADDRESS}="):
            raise ConfigError(f"{_flag(before)}{word}: {_instead(uri[1].lower())}")


def _flag(before: str) -> str:
    """The flag that a word is the value of, if it was given as two words."""
    return f"{before} " if before.startswith("--") and "=" not in before else ""


def _instead(scheme: str) -> str:
    if scheme == "file":
        return "file:// is not read. Give the path alone, for instance /data/images."
    return (
        f"{scheme}:// is not read or written. Copy the data to a local disk or mount it, and give "
        "its path there."
    )


def check_output(flags: Any) -> None:
    """Raise ConfigError where the flag --out names the same file or folder as another flag."""
    out = getattr(flags, "out", None)
    if not isinstance(out, Path) or not os.path.exists(out):
        return
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        for path in value if isinstance(value, tuple) else (value,):
            if field.name != "out" and isinstance(path, Path) and _same(path, out):
                flag = f"--{field.name.strip('_').replace('_', '-')}"
                raise ConfigError(
                    f"--out {out} has other files in it: {flag} names it, too. Name another one."
                )


def _same(path: Path, other: Path) -> bool:
    return os.path.exists(path) and os.path.samefile(path, other)
