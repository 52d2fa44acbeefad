"""The ledger of images that a training run could not use: one line each, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

from ops.files import open_regular, write_bytes


class Ledger:
    """A .jsonl file of {"key", "reason"} with one line a key, however often a run is resumed."""

    def __init__(self, path: Path) -> None:
        """Read the lines that are there, and remove those that are none.

        Raises NotRegularError where `path` is no regular file.
        """
        self.path = path
        lines = _lines_of(path)
        keys = [_key_of(line) for line in lines]
        if None in keys:  # a kill truncated the last line; its image will fail again
            complete = (line for line, key in zip(lines, keys, strict=True) if key is not None)
            write_bytes(path, b"".join(line + b"\n" for line in complete))
        self._keys = set(keys)

    def add(self, key: str, reason: str) -> None:
        """Record why the image `key` was not used, unless it is recorded already."""
        if key in self._keys:
            return
        self._keys.add(key)
        line = json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n"
        with open(self.path, "ab") as file:
            file.write(line.encode(errors="backslashreplace"))  # lone surrogates, as JSON has them


def _lines_of(path: Path) -> list[bytes]:
    """The lines of a file; a text's splitlines would end them at U+2028 in a key, too."""
    try:
        with open_regular(path) as file:
            return [line for line in file.read().split(b"\n") if line]
    except FileNotFoundError:
        return []


def _key_of(line: bytes) -> str | None:
    """The key in a line; None where it is not one of a ledger."""
    try:
        key = json.loads(line)["key"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return key if isinstance(key, str) else None
