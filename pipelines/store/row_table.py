"""The row table: a store's current rows as columns that every process maps into its memory.

Index parts hold a few hundred bytes a row, mostly text. What reading codes for training needs of
them is made once, 16 bytes a row, and kept as files: in the store, or where that cannot be written,
in the cache folder. It is named after the state of the index, so that a store that has grown gets
another one. It is made from the index alone: one that is missing or damaged is made anew.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ops import disk
from ops.config import UserError
from ops.files import fsync_path, fsync_tree, json_hash, make_folders, read_json, write_json
from ops.key_hashes import key_hashes
from ops.paths import AnyPath, ObjectPath, below, find_files, join
from pipelines.store.commit import INDEX_SCHEMA
from pipelines.store.layout import grid_shape
from pipelines.store.parquet import PARQUET_ERRORS, checked_table, open_parquet, parquet_bytes

IntArray = NDArray[np.int64]
FOLDER = "_rows"
NOTABLE = "notable.parquet"
FORMAT = 1
KEPT_FROM = 100_000  # rows: fewer are read from the index in less than a second
#: What reading files raises that are not as they were written.
MAP_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, UserError)
KEYS_AT_ONCE = 65_536  # keys that exist as Python objects at a time
#: Columns and their types; `image` exists where keys are repeated.
COLUMNS = {"row": np.int64, "label": np.int32, "key_hash": np.uint32, "image": np.int64}


@dataclass(frozen=True)
class RowTable:
    """The current rows of a store, grid after grid in the order of their names, ascending."""

    grids: dict[str, int]  # how many rows each has, by name, sorted
    row: IntArray  # (N,)
    label: NDArray[np.int32]  # (N,) -1 where the index has none
    key_hash: NDArray[np.uint32]  # (N,) the first four bytes of ops.key_hashes
    #: (N,) images numbered as they first occur, of which rows are views; None: each row is one.
    image: IntArray | None
    kept: Path | None = None  # the folder that it is mapped from

    def of_grid(self, grid: str) -> slice:
        """Where the rows of `grid` lie in the columns; an empty slice where it has none."""
        names = sorted(self.grids)
        first = sum(self.grids[name] for name in names if name < grid)
        return slice(first, first + self.grids.get(grid, 0))

    def __reduce__(self) -> Any:  # another process maps the files itself
        columns = (self.row, self.label, self.key_hash, self.image)
        if self.kept is None:
            return RowTable, (self.grids, *columns)
        return _reopened, (self.kept,)


@dataclass(frozen=True)
class PartRows:
    """The current rows of one index part."""

    grid: str
    row: IntArray
    label: NDArray[np.int32]
    hashes: NDArray[np.uint64]  # ops.key_hashes


def part_rows(grid: str, lines: pa.Table) -> PartRows:
    """The columns of some lines of the index, INDEX_SCHEMA, of one grid."""
    keys = lines["key"].cast(pa.large_binary())
    hashes = [
        key_hashes(keys.slice(first, KEYS_AT_ONCE).to_pylist())
        for first in range(0, len(keys), KEYS_AT_ONCE)
    ]
    labels = lines["label"].fill_null(-1).to_numpy().astype(np.int32)
    found = np.concatenate([np.empty(0, np.uint64), *hashes])
    return PartRows(grid, lines["row"].to_numpy().astype(np.int64), labels, found)


def make_row_table(parts: Iterable[PartRows]) -> RowTable:
    """The row table of a store's parts, each grid's in ascending order."""
    by_grid: dict[str, list[PartRows]] = {}
    for part in parts:
        by_grid.setdefault(part.grid, []).append(part)
    ordered = [part for grid in sorted(by_grid) for part in by_grid[grid]]
    hashes = np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in ordered)])
    return RowTable(
        {grid: sum(len(p.row) for p in found) for grid, found in sorted(by_grid.items())},
        np.concatenate([np.empty(0, np.int64), *(part.row for part in ordered)]),
        np.concatenate([np.empty(0, np.int32), *(part.label for part in ordered)]),
        (hashes >> 32).astype(np.uint32),
        numbered_images(hashes),
    )


def numbered_images(keys: NDArray[np.integer[Any]]) -> IntArray | None:
    """Equal `keys` (N,) as one number, in the order in which they first occur; None where all
    differ."""
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    del ordered
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    images: IntArray = numbers[inverse]
    return images


# --- files


def index_state(root: AnyPath) -> str:
    """A text that is another one when index parts or tombstones were added or written again."""
    parts = [
        (below(info.path, root), info.size, info.etag)
        for folder in ("_index", "_tombstones")
        for info in find_files(join(root, folder))
        if info.path.name.endswith(".parquet")
    ]
    return json_hash([FORMAT, sorted(parts)])[:32]


@dataclass(frozen=True)
class Keeping:
    """Where the table of one state of a store's index is kept, and whether one suits the store."""

    root: AnyPath
    cache: Path
    state: str
    fits: Callable[[RowTable], bool]

    def open(self) -> RowTable | None:
        """The table that was kept, mapped; None where there is none, or it is damaged."""
        return next(filter(None, map(self._usable, self._folders())), None)

    def keep(self, table: RowTable, notable: pa.Table) -> RowTable:
        """Write a large table to files and return it mapped from there, else as it is.

        `notable` are the lines of the index that are kept with it. Processes that do so at the same
        time keep the same content; the first one's is taken.
        """
        if len(table.row) < KEPT_FROM:
            return table
        for folder in self._folders():
            with contextlib.suppress(OSError):  # a store that cannot be written, or a full disk
                self._write(table, notable, folder)
                _remove_others(folder)
            found = self._usable(folder)
            if found is not None:
                return found
        return table

    def _folders(self) -> list[Path]:
        """Where the table may lie, the preferred place first."""
        in_cache = self.cache / "rows" / json_hash([str(self.root)])[:32] / self.state
        if isinstance(self.root, ObjectPath):
            return [in_cache]
        return [self.root / FOLDER / self.state, in_cache]

    def _usable(self, folder: Path) -> RowTable | None:
        with contextlib.suppress(*MAP_ERRORS):
            table = _mapped(folder)
            return table if self.fits(table) else None
        return None

    def _write(self, table: RowTable, notable: pa.Table, folder: Path) -> None:
        make_folders(folder.parent)
        partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            partial.mkdir()
            for name in COLUMNS:
                column = getattr(table, name)
                if column is not None:
                    np.save(partial / f"{name}.npy", column, allow_pickle=False)
            (partial / NOTABLE).write_bytes(parquet_bytes(notable))
            write_json(partial / "table.json", {"format": FORMAT, "grids": table.grids})
            fsync_tree(partial)
            if self._usable(folder) is None:  # else another process was first
                shutil.rmtree(folder, ignore_errors=True)
                disk.disk.replace(partial, folder)
            fsync_path(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def read_notable(table: RowTable) -> pa.Table | None:
    """The lines of the index that were kept with a table; None where they are not intact."""
    if table.kept is None:
        return None
    try:
        return checked_table(open_parquet(table.kept / NOTABLE).read(), INDEX_SCHEMA)
    except PARQUET_ERRORS:
        return None


def _remove_others(folder: Path) -> None:
    """Remove the tables of other states; a process that has one mapped keeps it."""
    for other in folder.parent.iterdir():
        if other != folder and other.suffix != ".partial":
            shutil.rmtree(other, ignore_errors=True)


def _reopened(folder: Path) -> RowTable:
    return _mapped(folder)


def _mapped(folder: Path) -> RowTable:
    """The table in `folder`; raises OSError, ValueError or the like where it is not intact."""
    about = read_json(folder / "table.json", follow=False)
    grids = {str(grid): int(count) for grid, count in about["grids"].items()}
    if about["format"] != FORMAT or list(grids) != sorted(grids) or min(grids.values()) < 0:
        raise ValueError("it has another format")
    columns: dict[str, Any] = {"image": None}
    for name, kind in COLUMNS.items():
        path = folder / f"{name}.npy"
        if name == "image" and not path.exists():
            continue
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.dtype != kind or found.shape != (sum(grids.values()),):
            raise ValueError(f"{path} is another column")
        columns[name] = found
    for grid in grids:
        grid_shape(grid)
    return RowTable(grids, kept=folder, **columns)
