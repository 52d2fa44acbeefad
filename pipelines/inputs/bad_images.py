"""The ledger of images that a training run could not use: one line each, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

from ops.files import write_bytes


class Ledger:
    """A .jsonl file of {"key", "reason"} with one line a key, however often a run is resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        complete = [line for line in lines if line.endswith("}")]
        if len(complete) < len(lines):  # a kill truncated the last line; its image will fail again
            write_bytes(path, "".join(line + "\n" for line in complete).encode())
        self._keys = {json.loads(line)["key"] for line in complete}

    def add(self, key: str, reason: str) -> None:
        """Record why the image `key` was not used, unless it is recorded already."""
        if key in self._keys:
            return
        self._keys.add(key)
        with open(self.path, "a") as file:
            file.write(json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n")
