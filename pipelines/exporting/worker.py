"""ExportWorker: writes the files of one shard, and the record that it is done."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ops import disk, paths
from ops.disk_errors import disk_errors_explained
from ops.files import fsync_path, fsync_tree, make_folders
from ops.paths import AnyPath, ObjectPath, join
from ops.precision import use_precision
from ops.runtime import compute_repeatably, keep_freed_memory
from pipelines.exporting.formats import format_named
from pipelines.exporting.record import (
    ShardRecord,
    files_of,
    records_path,
    write_record,
)
from pipelines.exporting.shard_rows import Shard, StoreRows
from pipelines.jobs import Done


class ExportWorker:
    """Exports shards of the store at `store` to `out`; made once a process.

    A shard's files are written into a folder of the attempt, and then renamed: an attempt that was
    given up, but goes on, can only put the same bytes in their place.
    """

    def __init__(self, store: AnyPath, out: AnyPath, to: str, device: str, threads: int) -> None:
        keep_freed_memory()
        self._out, self._threads = out, threads
        self._rows = StoreRows(store)
        found = format_named(to)
        if found.decodes:
            compute_repeatably()
            use_precision("float32")
        self._format = found(self._rows.store, device)

    def run(self, shard: Shard, /) -> Done:
        """Export a shard that is not done; the number of its rows.

        Raises StoreError where the store is corrupt, DiskError where the disk refuses to write.
        """
        torch.set_num_threads(self._threads)  # here: the number belongs to each thread
        lines = self._rows.lines(shard)
        index, files = None, dict[str, int]()
        with disk_errors_explained(self._out):
            if len(lines):
                rows = self._rows.read(shard, lines)
                with self._folder(shard) as folder:
                    index = self._format.write(rows, folder)
                    files = files_of(folder, shard)
            digest = self._rows.digest(lines)
            record = ShardRecord(digest=digest, rows=len(lines), files=files, index=index)
            write_record(self._out, shard, record)
        return Done(len(lines), 0)

    @contextmanager
    def _folder(self, shard: Shard) -> Iterator[Path]:
        """The folder to write into; what is in it is moved to its place afterwards."""
        out = self._out
        if isinstance(out, ObjectPath):
            with tempfile.TemporaryDirectory(prefix="smalti-") as temporary:
                yield Path(temporary)
                for path in sorted(Path(temporary).rglob("*")):
                    if path.is_file():
                        paths.copy(path, join(out, *path.relative_to(temporary).parts))
            return
        if self._format.in_place:
            yield out
            fsync_tree(out / shard.name)
            return
        partial = records_path(out) / f"{shard.name}.{uuid.uuid4().hex[:8]}.partial"
        disk.disk.make_folder(partial)
        try:
            yield partial
            fsync_tree(partial)
            for path in sorted(partial.rglob("*")):
                if path.is_dir():
                    make_folders(out / path.relative_to(partial))
                else:
                    final = out / path.relative_to(partial)
                    disk.disk.replace(path, final)
                    fsync_path(final.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
