"""ShardRows: the rows of one shard of a code store that are exported, with all that belongs to
them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ops.paths import AnyPath
from pipelines.store import (
    CLASS,
    CodeStore,
    StoreError,
    committed_tasks,
    fill_value,
    grid_shape,
    read_part,
    row_checksums,
    row_form,
)

Codes = np.ndarray[Any, Any]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Shard(NamedTuple):
    """One task of the store: the rows of one shard file."""

    grid: str
    task: int

    @property
    def name(self) -> str:
        """What the names of all files that are made of the shard begin with."""
        return f"{self.grid}-{self.task:05d}"


class TrackRows(NamedTuple):
    """A further track of exported rows."""

    values: Codes  # (n, h, w); fill_value() in rows that the track lacks
    present: Mask  # (n,)


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The exported rows of a shard."""

    shard: Shard
    lines: pa.Table  # n lines: key, row, view, label (-1 for none), width, height, checksums
    codes: Codes  # (n, h, w), as stored
    tracks: dict[str, TrackRows]
    label_names: list[str]

    @property
    def name(self) -> str:
        return self.shard.name

    def facts(self) -> Iterator[dict[str, Any]]:
        """What is known of each row apart from its arrays, as JSON."""
        columns = ["key", "row", "view", "label", "width", "height"]
        for line in self.lines.select(columns).to_pylist():
            label = line["label"] if line["label"] >= 0 else None
            name = None if label is None else self.label_names[label]
            yield {**line, "grid": self.shard.grid, "label": label, "class": name}


class StoreRows:
    """Reads the exported rows of a store, shard by shard.

    Raises StoreError as CodeStore does.
    """

    def __init__(self, path: AnyPath) -> None:
        self.store = CodeStore.open(path)
        names = (name for name in self.store.track_names if name != CLASS)  # those are the labels
        self.tracks = {name: self.store.track(name) for name in names}
        self._track_tasks = {
            name: committed_tasks(track.path) for name, track in self.tracks.items()
        }

    def shards(self) -> list[Shard]:
        """The committed shards, by grid and number."""
        tasks = committed_tasks(self.store.path)
        return [Shard(*task) for task in sorted(tasks, key=lambda t: (grid_shape(t[0]), t[1]))]

    def lines(self, shard: Shard) -> pa.Table:
        """The lines of the shard's current rows: a function of what is exported of them."""
        rows = self._current(self.store, shard)
        found = read_part(self.store.path, *shard)[0].take(rows - self._first(shard))
        columns = {name: found[name] for name in ("key", "row", "view")}
        columns["label"] = pa.array(self.store.labels(shard.grid, rows), pa.int32())
        columns |= {name: found[name] for name in ("width", "height", "checksum")}
        for name, track in self.tracks.items():
            columns[f"checksum of {name}"] = self._track_checksums(track, shard, rows)
        return pa.table(columns)

    def digest(self, lines: pa.Table) -> str:
        """A hash of lines(): another one where other rows, labels or tracks would be exported."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, lines.schema) as writer:
            writer.write_table(lines.combine_chunks())
        return hashlib.sha256(sink.getvalue()).hexdigest()

    def read(self, shard: Shard, lines: pa.Table) -> ShardRows:
        """The rows of `lines`; raises StoreError where they are not what the index says."""
        rows = lines["row"].to_numpy()
        codes = self.store.read(shard.grid, rows)
        self._check(self.store, codes, lines["checksum"])
        tracks = {}
        for name, track in self.tracks.items():
            checksums = lines[f"checksum of {name}"]
            present = checksums.is_valid().to_numpy()
            form = row_form(shard.grid, track.provenance[name])
            values = np.full((len(rows), *form.shape), fill_value(form.dtype), form.dtype)
            if present.any():
                values[present] = track.read(shard.grid, rows[present])
                self._check(track, values[present], checksums.drop_null())
            tracks[name] = TrackRows(values, present)
        return ShardRows(
            shard=shard,
            lines=lines,
            codes=codes,
            tracks=tracks,
            label_names=self.store.label_names,
        )

    def _first(self, shard: Shard) -> int:
        return shard.task * self.store.rows_per_task

    def _current(self, store: CodeStore, shard: Shard) -> IntArray:
        """The numbers of the current rows of `store`, or a track of it, in this shard."""
        if shard.grid not in store.grids:
            return np.empty(0, np.int64)
        rows, first = store.ok_rows(shard.grid), self._first(shard)
        start, end = np.searchsorted(rows, (first, first + self.store.rows_per_task))
        return rows[start:end]

    def _track_checksums(self, track: CodeStore, shard: Shard, rows: IntArray) -> pa.Array:
        """The checksums of a track's rows; null where it lacks one."""
        found = np.zeros(len(rows), np.uint32)
        present = np.isin(rows, self._current(track, shard))
        if tuple(shard) in self._track_tasks[track.name]:
            checksums = read_part(track.path, *shard)[0]["checksum"].to_numpy()
            found[present] = checksums[rows[present] - self._first(shard)]
        return pa.array(found, mask=~present)

    def _check(self, store: CodeStore, codes: Codes, checksums: pa.ChunkedArray) -> None:
        if not np.array_equal(row_checksums(codes), checksums.to_numpy()):
            raise StoreError(f"{store.path}: rows differ from their checksums. Run verify.")
