"""ExportFormat: how the rows of a store become files of one kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipelines.exporting.shard_rows import ShardRows
from pipelines.store import CodeStore


class ExportFormat(ABC):
    """Writes the rows of `store`, shard by shard; made once in each worker.

    `device` is where codes are decoded, if they are.
    """

    library: ClassVar[str | None] = None
    """The module that it needs in addition to Smalti's own dependencies."""
    decodes: ClassVar[bool] = False
    """Whether codes are decoded, so that the files depend on the device and the threads."""
    in_place: ClassVar[bool] = False
    """Whether write() gets the export's own folder, writes each file there so that it appears
    whole, and leaves those that are there: what a killed attempt has written is kept."""

    def __init__(self, store: CodeStore, device: str) -> None:
        self.store, self.device = store, device

    @abstractmethod
    def write(self, rows: ShardRows, folder: Path) -> Any:
        """Write the rows, at least one, into an empty `folder`; the same rows, the same bytes.

        Every path below `folder` begins with rows.name, after which comes a dot, or a slash. What
        is returned, JSON, is passed to index().
        """

    @staticmethod
    def index(found: Sequence[Any]) -> dict[str, Any]:
        """The JSON files that describe all shards together, by name; `found` is what write()
        returned of each, in their order."""
        return {}
