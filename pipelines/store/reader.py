"""CodeStore: reads a code store, rows listed by the index, codes from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ops.cache_folder import SHARDS, cache_folder
from ops.file_cache import FileCache
from ops.paths import AnyPath, ObjectPath, exists, parse_path
from pipelines.flags import CACHE_BYTES
from pipelines.store.commit import INDEX_SCHEMA, committed_tasks, describe_part, read_part
from pipelines.store.index_scan import IndexScan, scan_index, without_rows
from pipelines.store.layout import (
    CLASS,
    StoreError,
    grid_shape,
    index_path,
    plan_path,
    refuse_links,
    store_root,
    track_name,
    track_path,
)
from pipelines.store.mapping import ShardFiles
from pipelines.store.recovery import local_tokenizer
from pipelines.store.row_table import (
    Keeping,
    RowTable,
    index_state,
    make_row_table,
    read_notable,
)
from pipelines.store.tombstones import read_tombstones
from pipelines.store.zarr_metadata import StoreAttributes, fill_value, read_attributes

T = TypeVar("T")
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Labels = np.ndarray[Any, np.dtype[np.int32]]
DECODED_BYTES = 512 << 20
READERS = 4  # index parts that are read at a time
REQUESTS = 16  # the same of an object store: requests wait far longer than they compute


class CodeStore:
    """A code store opened for reading.

    Its current rows are those whose status is `ok`, that no newer row replaces, and whose image
    has no tombstone. A row is addressed by (grid, row), for instance ("32x32", 17), or by its
    position among the current rows in index order. Of a compressed store, the shards used last
    stay decompressed, up to `decoded_bytes`. `track(name)` opens a further track: its rows have
    the numbers of the image's, but statuses of their own. Shards of a store in an object store are
    copied to `cache` when they are first read, and mapped there.
    """

    def __init__(
        self, path: AnyPath, attributes: StoreAttributes, decoded_bytes: int, cache: FileCache
    ) -> None:
        self.path = path
        self.cache = cache
        #: The track that is read: `image`, or the name given to track().
        self.name = track_name(path)
        self._attributes = attributes
        self._decoded_bytes = decoded_bytes
        #: Bytes of shards that stay decompressed; None where shards are memory-mapped.
        self.decoded_bytes = decoded_bytes if attributes.compress else None
        #: Bytes of shards that are kept as local files; None where the store is on a disk.
        self.cached_bytes = cache.max_bytes if isinstance(path, ObjectPath) else None
        self._shards = ShardFiles(path, attributes, decoded_bytes, cache)
        #: (grid, task) of each index part, in index order.
        self._parts = sorted(committed_tasks(path), key=lambda t: (grid_shape(t[0]), t[1]))
        described = _in_threads(path, lambda task: describe_part(path, *task), self._parts)
        for (grid, task), (num_rows, shards) in zip(self._parts, described, strict=True):
            self._check_rows(grid, task, num_rows)
            self._shards.add(grid, task, num_rows, shards)
        _ = self.rows  # so that what is wrong with the index is found now

    @classmethod
    def open(
        cls,
        path: AnyPath | str,
        decoded_bytes: int = DECODED_BYTES,
        *,
        cache_dir: Path | str | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> CodeStore:
        """Open the store at `path`; raises StoreError where it is missing, foreign or corrupt.

        Metadata and index are checked now, codes when they are read. The index of a large store is
        read whole once, by the first process that opens it: see row_table.py. Of a store at `s3://`
        or `gs://`, at most `cache_bytes` of shards are kept as files in `cache_dir` (by default
        `shards` below ops.cache_folder), for all processes of the machine.
        """
        path = parse_path(path) if isinstance(path, str) else path
        refuse_links(path, shards=False)
        folder = Path(cache_dir).expanduser() if cache_dir else cache_folder(SHARDS)
        return cls(path, read_attributes(path), decoded_bytes, FileCache(folder, cache_bytes))

    def _check_rows(self, grid: str, task: int, num_rows: int, first: int | None = None) -> None:
        """Raise StoreError where an index part has rows of other tasks or grids."""
        attributes = self._attributes
        expected = task * attributes.rows_per_task
        end = min(expected + attributes.rows_per_task, attributes.grids.get(grid, 0))
        if first not in (None, expected) or expected + num_rows > end:
            raise StoreError(
                f"{index_path(self.path, grid, task)}: its rows are not those of task {task}, "
                f"{expected} to {end - 1} at most. Run verify."
            )

    def _check_labels(self, lines: pa.Table, grid: str, task: int) -> None:
        """Raise StoreError where lines of the index have labels without a class."""
        label, names = pc.max(lines["label"]).as_py(), self._attributes.label_names
        if label is not None and names and label >= len(names):
            raise StoreError(
                f"{index_path(self.path, grid, task)}: label {label}, but there are {len(names)} "
                "classes. Run verify."
            )

    def _lines(self, places: Sequence[int]) -> Iterator[pa.Table]:
        """The lines of the index parts at some places of `_parts`, checked; a few in memory."""
        chosen = [self._parts[place] for place in places]
        read = _in_threads(self.path, lambda task: read_part(self.path, *task)[0], chosen)
        for (grid, task), lines in zip(chosen, read, strict=True):
            self._check_rows(grid, task, len(lines), lines["row"][0].as_py())
            self._check_labels(lines, grid, task)
            yield lines

    @cached_property
    def index(self) -> pa.Table:
        """INDEX_SCHEMA, one line for each committed row, `ok` or not: some hundred bytes a row.

        Raises StoreError where a part is corrupt.
        """
        parts = self._lines(range(len(self._parts)))
        return pa.concat_tables([INDEX_SCHEMA.empty_table(), *parts])

    @cached_property
    def _keeping(self) -> Keeping:
        return Keeping(self.path, self.cache.folder, index_state(self.path), self._fits)

    @cached_property
    def _kept(self) -> RowTable | None:
        """The row table that an earlier process has made of this index."""
        return self._keeping.open()

    def _fits(self, kept: RowTable) -> bool:
        """Whether a table that may come from elsewhere has no other grids and classes."""
        known, names = self._attributes.grids, self._attributes.label_names
        fits = all(count <= known.get(grid, 0) for grid, count in kept.grids.items())
        if names and len(kept.label):
            fits = fits and bool(kept.label.min() >= -1 and kept.label.max() < len(names))
        return fits

    @cached_property
    def _scan(self) -> IndexScan:
        return scan_index(len(self._parts), self._lines)

    @cached_property
    def rows(self) -> RowTable:
        """The current rows as columns, mapped from files where the store is large."""
        if self._kept is not None:
            return self._kept
        dropped = [*self._with_older(self._replacing_ok).chunks, *self._gone.chunks]
        addresses = pa.chunked_array(dropped, pa.large_string()).drop_null()
        table = make_row_table(without_rows(self._scan.rows, addresses))
        del self._scan  # it takes more memory than the table
        return self._keeping.keep(table, self.notable)

    @cached_property
    def notable(self) -> pa.Table:
        """The lines of `index` of rows that failed, have a note, replace others, or whose image has
        the bytes of another one."""
        kept = None if self._kept is None else read_notable(self._kept)
        return self._scan.notable if kept is None else kept

    @property
    def _replacing_ok(self) -> pa.ChunkedArray:
        """Addresses of the rows that a row which is ok replaces; others replace none."""
        ok = self.notable.filter(pc.equal(self.notable["status"], "ok"))
        return ok["replaces"].drop_null()

    def __getstate__(self) -> dict[str, Any]:
        views = ("_rows_of_grids", "_labels_of_grids")  # of a table that is mapped, not copied
        return {name: value for name, value in self.__dict__.items() if name not in views}

    @property
    def track_names(self) -> tuple[str, ...]:
        """The names of the further tracks, without `image`."""
        return tuple(sorted(self._attributes.tracks.keys() - {"image"}))

    def track(self, name: str) -> CodeStore:
        """The track of this name; raises StoreError where the store has none."""
        root = store_root(self.path)
        if name == "image":
            return CodeStore(root, self._attributes, self._decoded_bytes, self.cache)
        track_dir = track_path(root, name)
        if name not in self._attributes.tracks or not exists(plan_path(track_dir, 0)):
            has = ", ".join(self.track_names) or "none"
            raise StoreError(
                f"{root} has no track {name!r}; it has {has}. Add it with encode --track {name}=..."
            )
        return CodeStore(track_dir, self._attributes, self._decoded_bytes, self.cache)

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """By track: the tokenizer's name, fingerprint, codebook_size and downsample_factor, the
        transform, dtype, threads and batch_size that made its codes; for a track without a
        tokenizer the meaning of its numbers."""
        return self._attributes.tracks

    @property
    def label_names(self) -> list[str]:
        """The class folders, or classes of track `class`; a label is a position in this list."""
        classes = self._attributes.tracks.get(CLASS)
        if classes is not None:
            return list(classes["classes"])
        return list(self._attributes.label_names)

    @property
    def rows_per_task(self) -> int:
        return self._attributes.rows_per_task

    @property
    def tokenizer_folder(self) -> Path:
        """The copy, inside the store, of the tokenizer that made these codes.

        Of a store in an object store, a copy of that in the folder of its cache.
        """
        return local_tokenizer(self.path, self.cache.folder)

    def prefetch(self, grid: str, task: int) -> None:
        """Make a local copy of a shard of an object store, if there is none; on a disk, nothing."""
        self._shards.copy(grid, self.name, task)

    @cached_property
    def _current(self) -> pa.Table:
        """The index lines of the current rows, in order; only a row that is ok replaces another."""
        ok = self.index.filter(pc.equal(self.index["status"], "ok"))
        replaced = self._with_older(self._replacing_ok)
        return _without(_without(ok, replaced), self._gone).combine_chunks()

    @cached_property
    def failed(self) -> pa.Table:
        """The index lines of rows that failed and that no later attempt replaces."""
        failed = self.notable.filter(pc.not_equal(self.notable["status"], "ok"))
        return _without(_without(failed, self.notable["replaces"]), self._gone)

    @cached_property
    def _gone(self) -> pa.ChunkedArray:
        """Addresses of the rows with a tombstone and of all that they replace."""
        return self._with_older(_addresses(read_tombstones(store_root(self.path))))

    def _with_older(self, addresses: pa.ChunkedArray) -> pa.ChunkedArray:
        """These addresses and those of all rows that they replace, across failed rows too."""
        newer = self.notable.filter(pc.is_valid(self.notable["replaces"]))
        if not (len(addresses) and len(newer)):
            return addresses
        names = _addresses(newer)
        found = pc.is_in(names, value_set=addresses).to_numpy(zero_copy_only=False)
        # By position, so that a chain of any length is followed in time proportional to it.
        older = pc.index_in(newer["replaces"], value_set=names).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(found)
        while len(places):
            places = np.unique(older[places][~np.isnan(older[places])].astype(np.int64))
            places = places[~found[places]]
            found[places] = True
        replaced = newer["replaces"].filter(pa.array(found))
        return pa.chunked_array([*addresses.chunks, *replaced.chunks], pa.large_string())

    @cached_property
    def _rows_of_grids(self) -> dict[str, IntArray]:
        table = self.rows
        grids = sorted(table.grids, key=grid_shape)  # index order
        return {grid: table.row[table.of_grid(grid)] for grid in grids if table.grids[grid]}

    @cached_property
    def _labels_of_grids(self) -> dict[str, tuple[IntArray, Labels]]:
        """(row numbers, ascending, and their labels) of each grid, for rows that may have one."""
        if CLASS in self._attributes.tracks:
            track = self.track(CLASS)
            return {grid: track._classes(grid, len(self.label_names)) for grid in track.grids}
        if not self.label_names:  # numbers without names mean nothing
            return {}
        return {grid: (self.ok_rows(grid), self._labels_of(grid)) for grid in self.grids}

    def _labels_of(self, grid: str) -> Labels:
        """The labels of the current rows of a grid as the index has them."""
        return self.rows.label[self.rows.of_grid(grid)]

    def _classes(self, grid: str, number: int) -> tuple[IntArray, Labels]:
        """Of a track of classes, its rows and their classes below `number`; -1 for none."""
        rows = self.ok_rows(grid)
        found = np.nan_to_num(self.read(grid, rows)[:, 0, 0], nan=-1)
        known = np.isin(found, np.arange(-1, number))
        if not known.all():
            raise StoreError(
                f"{self.path}: row {rows[~known][0]} of grid {grid} has class "
                f"{found[~known][0]:g}, but there are {number}. Run verify."
            )
        return rows, found.astype(np.int32)

    @property
    def grids(self) -> dict[str, int]:
        """Numbers of current rows, by grid shape."""
        return {grid: len(rows) for grid, rows in self._rows_of_grids.items()}

    def ok_rows(self, grid: str) -> IntArray:
        """The numbers of the current rows of `grid`, ascending; StoreError where it has none."""
        if grid not in self._rows_of_grids:
            raise StoreError(f"{self.path} has no codes of grid {grid}; it has {self.grids}.")
        return self._rows_of_grids[grid]

    def labels(self, grid: str, rows: IntArray) -> Labels:
        """The labels (n,) of current rows of one grid; -1 where an image has none.

        Raises StoreError where a label is none of the classes.
        """
        labels = np.full(len(rows), -1, np.int32)
        if grid in self._labels_of_grids:
            known, numbers = self._labels_of_grids[grid]
            places = np.searchsorted(known, rows).clip(max=len(known) - 1)
            found = known[places] == rows
            labels[found] = numbers[places[found]]
        return labels

    def __len__(self) -> int:
        return len(self.rows.row)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The current row at a position: its index line and its codes (h, w)."""
        if not -len(self) <= position < len(self):
            raise IndexError(f"row {position} of a store of {len(self)} rows")
        line: dict[str, Any] = self._current.slice(position % len(self), 1).to_pylist()[0]
        codes = self.read(line["grid"], np.array([line["row"]]))[0]
        return {**line, "codes": codes}

    def read(self, grid: str, rows: IntArray) -> np.ndarray[Any, Any]:
        """Codes (n, h, w) of the given row numbers, in their order, as stored (unsigned); of a
        track without a tokenizer float32 (n, *row_shape).

        Raises StoreError for rows that are not committed, and for codes beyond the codebook.
        """
        rows = np.asarray(rows, np.int64)
        found = self._shards.read(grid, self.name, rows)
        size: int = self._attributes.tracks[self.name].get("codebook_size", 0)
        if found.dtype.kind == "u" and found.size and found.max() >= size:
            self._check_codes(grid, rows, found, size)
        return found

    def _check_codes(
        self, grid: str, rows: IntArray, codes: np.ndarray[Any, Any], size: int
    ) -> None:
        """Raise StoreError where a code is not below `size`, but for the fill of failed rows."""
        failed = self.notable.filter((pc.field("grid") == grid) & (pc.field("status") != "ok"))
        empty = (codes == fill_value(codes.dtype)).all((1, 2))
        empty &= np.isin(rows, failed["row"].to_numpy())
        high = codes.max((1, 2))
        wrong = np.flatnonzero((high >= size) & ~empty)
        if len(wrong):
            raise StoreError(
                f"{self.path}: row {rows[wrong[0]]} of grid {grid} has code {high[wrong[0]]}, but "
                f"its tokenizer has {size} codes. Run verify."
            )

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Every current row, in index order, grid by grid; the last batch of a grid may be short.

        Yields {"codes": (B, h, w) int64, "label": (B,) int64 with -1 for none, "key": B strings}.
        """
        start = 0
        keys = self._current["key"]
        for grid, rows in self._rows_of_grids.items():
            for first in range(0, len(rows), batch_size):
                batch = rows[first : first + batch_size]
                codes = self.read(grid, batch).astype(np.int64)
                labels = self.labels(grid, batch).astype(np.int64)
                yield {
                    "codes": torch.from_numpy(codes),
                    "label": torch.from_numpy(labels),
                    "key": keys.slice(start + first, len(batch)).to_pylist(),
                }
            start += len(rows)


def _in_threads(path: AnyPath, read: Callable[[Any], T], tasks: Sequence[Any]) -> Iterator[T]:
    """`read` of each task, in order, so many at a time that few results wait in memory."""
    at_once = REQUESTS if isinstance(path, ObjectPath) else READERS
    with ThreadPoolExecutor(at_once, "index") as threads:
        for first in range(0, len(tasks), at_once):
            yield from threads.map(read, tasks[first : first + at_once])


def _addresses(lines: pa.Table) -> pa.ChunkedArray:
    """ "grid/row" of each line."""
    text = pa.large_string()
    return pc.binary_join_element_wise(lines["grid"], lines["row"].cast(text), pa.scalar("/", text))


def _without(lines: pa.Table, addresses: pa.ChunkedArray) -> pa.Table:
    """The index lines whose address is not among `addresses`."""
    addresses = addresses.drop_null()
    if not len(addresses):  # the usual case; making the addresses of a million lines takes time
        return lines
    return lines.filter(pc.invert(pc.is_in(_addresses(lines), value_set=addresses)))
