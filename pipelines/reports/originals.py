"""The images that a store's codes were made of, for a report that shows them.

A store may come from elsewhere and name any file. So a file is read only where the store's plan
lists it for the row, and used only where it is the file that was encoded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ops.images import ImageError
from ops.web_paths import is_remote
from pipelines.inputs import content_hash, parse_address, read_bytes
from pipelines.planning import read_plan, task_table
from pipelines.store import CodeStore, StoreError


class Originals:
    """Reads the originals of rows of a store.

    A file is the one that was encoded where its size and time are those in the plan and the hash
    of its bytes is that in the index; with `by_content`, where the hash alone is. `folders` are
    those of the files that were used.
    """

    def __init__(self, store: CodeStore, by_content: bool = False) -> None:
        self._root, self._by_content = store.path, by_content
        self.folders: set[str] = set()
        plan = read_plan(store.path)
        self._tasks = {(t.grid, t.number): t for t in plan.tasks} if plan else {}
        self._rows_per_task = store.rows_per_task

    def read(self, row: Mapping[str, Any]) -> bytes | None:
        """The bytes of an index line's image; None where they are not those that were encoded."""
        planned = self._planned(row)
        if planned is None or row["content"] is None:
            return None
        uri, etag = planned["uri"], planned["etag"]
        if is_remote(uri):  # a report contacts no server that a store names
            return None
        in_archive = planned["offset"] is not None
        try:
            if not (self._by_content or in_archive or _etag_now(uri) == etag):
                return None
            checked = None if self._by_content else etag
            data = read_bytes(uri, planned["offset"], planned["size"], checked)
        except (OSError, ValueError, ImageError):
            return None
        if content_hash(data) != row["content"]:
            return None
        place = parse_address(uri) if in_archive else None
        self.folders.add(os.path.dirname(place[0] if place else uri))
        return data

    def _planned(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The plan's row for an index line; None where the plan has another image there."""
        number, place = divmod(row["row"], self._rows_per_task)
        task = self._tasks.get((row["grid"], number))
        if task is None:
            return None
        try:
            rows = task_table(self._root, task).slice(place, 1).to_pylist()
        except StoreError:
            return None
        same = [r for r in rows if r["uri"] == row["source"] and r["key"] == row["key"]]
        return same[0] if same else None


def _etag_now(uri: str) -> str:
    status = os.stat(uri)
    return f"{status.st_size}-{status.st_mtime_ns}"
