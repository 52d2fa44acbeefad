"""Checks of a command line, its words and its paths, before anything is written."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ops.config import ConfigError
from ops.object_paths import parse_path
from ops.web_paths import parse_source
from pipelines.console.path_flags import STORAGE_OPTION

# At the start of a word, or of the value in --flag=value and NAME=value. A path that begins by ./
# is a local one, whatever it is called.
URI = re.compile(r"(?:^|=)\s*([A-Za-z][A-Za-z0-9+.-]*)://")
ADDRESS = "--address"  # of a Ray cluster: its value may be a URI that is no path
NO_URIS: Mapping[str, bool] = MappingProxyType({})


def check_words(
    words: Sequence[str], uris: Mapping[str, bool] = NO_URIS, sources: Collection[str] = ()
) -> None:
    """Raise ConfigError for a URI where a path is expected, and for text that is not UTF-8.

    `uris` are the flags that take one, with whether they take several; "" is an argument without a
    flag. `sources` are those whose value is only read, and may be at a web server too.
    """
    flag = ""
    for before, word in zip(["", *words], words, strict=False):
        if before.startswith("--") and "=" not in before:
            flag = before
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{_flag(before)}{word}: not UTF-8. Rename it; or, if it is UTF-8, set "
                "LC_ALL=C.UTF-8."
            ) from None
        uri = URI.search(word)
        if uri is None or _owner(before, word, flag, uris) in (ADDRESS, STORAGE_OPTION):
            continue
        scheme = uri[1].lower()
        owner = _owner(before, word, flag, uris)
        if owner not in uris:
            raise ConfigError(f"{_flag(before)}{word}: {_instead(scheme)}")
        try:
            text = word.partition("=")[2] if word.startswith("--") else word
            _ = parse_source(text) if owner in sources else parse_path(text)
        except ConfigError as error:
            raise ConfigError(f"{_flag(before)}{error}") from None


def _owner(before: str, word: str, flag: str, uris: Mapping[str, bool]) -> str:
    """The flag that a word is a value of; `flag` is the last one before it."""
    if word.startswith("--"):
        return word.partition("=")[0]
    if before.startswith("--") and "=" not in before:
        return before
    return flag if uris.get(flag) else ""


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
