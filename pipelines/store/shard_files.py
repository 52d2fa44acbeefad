"""A store's shard files for reading: raw ones mapped into memory, compressed ones decoded whole."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.store.layout import (
    RowForm,
    StoreAttributes,
    StoreError,
    row_form,
    shard_path,
    staging_path,
)
from pipelines.store.mapping import can_lie_side_by_side, map_side_by_side
from pipelines.store.shards import decode_shard, shard_rows, shard_size

Codes = np.ndarray[Any, Any]
Address = tuple[str, str, int]  # grid, track, task


class Joined(NamedTuple):
    """All shards of one grid and track, read by row number."""

    codes: Codes  # (rows planned, h, w); where no row was committed, anything
    gapless: int  # rows from the first on that are committed without a gap


class ShardFiles:
    """The shards that a store's index parts name, each checked to be there and of its size.

    Maps stay open; of decoded shards those used last are kept, up to `decoded_bytes` of them.
    """

    def __init__(self, root: Path, attributes: StoreAttributes, decoded_bytes: int) -> None:
        self._root = root
        self._attributes = attributes
        self._shards: dict[tuple[str, int], tuple[int, Mapping[str, Any]]] = {}
        self._maps: dict[Address, Codes] = {}
        self._joined: dict[tuple[str, str], Joined] = {}
        self._decoded = RecentlyUsed(decoded_bytes)

    def add(self, grid: str, task: int, num_rows: int, shards: Mapping[str, Any]) -> None:
        """Take in what an index part says of its shards: {track: {"file", "sha256", "bytes"}}.

        Raises StoreError where one is missing or short.
        """
        self._shards[grid, task] = (num_rows, shards)
        for track in shards:
            self._find((grid, track, task))

    def num_rows(self, grid: str, task: int) -> int:
        """Rows the index has of a task; 0 where it is not committed."""
        return self._shards.get((grid, task), (0, {}))[0]

    def rows(self, grid: str, track: str, task: int) -> Codes:
        """The rows (at least num_rows, h, w) of a committed task's shard."""
        address = (grid, track, task)
        if not self._attributes.compress:
            if address not in self._maps:
                self._maps[address] = self._load(address)
            return self._maps[address]
        rows = self._decoded.get(address)
        if rows is None:
            rows = self._load(address)
            self._decoded.put(address, rows)
        return rows

    def joined(self, grid: str, track: str) -> Joined | None:
        """All committed shards of a grid as one array; None where files do not allow of it."""
        if (grid, track) not in self._joined:
            row_bytes = self._row_bytes(grid, track)
            shard_bytes = self._attributes.rows_per_task * row_bytes
            if self._attributes.compress or not can_lie_side_by_side(shard_bytes):
                return None
            self._joined[grid, track] = self._join(grid, track, shard_bytes)
        return self._joined[grid, track]

    def _join(self, grid: str, track: str, shard_bytes: int) -> Joined:
        held = {task: rows for (g, task), (rows, _) in sorted(self._shards.items()) if g == grid}
        count = max(held, default=-1) + 1
        whole_tasks = next(
            (n for n in range(count) if held.get(n) != self._attributes.rows_per_task), count
        )
        gapless = whole_tasks * self._attributes.rows_per_task + held.get(whole_tasks, 0)
        form = self.form(grid, track)
        if not count:
            return Joined(np.empty((0, *form.shape), form.dtype), 0)

        def files() -> list[tuple[int, Path]]:
            return [(task, self._find((grid, track, task))) for task in held]

        try:
            places = map_side_by_side(files(), count, shard_bytes)
        except FileNotFoundError:  # one was published between the look and the opening
            places = map_side_by_side(files(), count, shard_bytes)
        return Joined(places.view(form.dtype).reshape(-1, *form.shape), gapless)

    def form(self, grid: str, track: str) -> RowForm:
        """How the rows of a track are stored; StoreError where the store has no such track."""
        tracks = self._attributes.tracks
        if track not in tracks:
            raise StoreError(f"{self._root} has no track {track!r}; it has {list(tracks)}.")
        return row_form(grid, tracks[track])

    def _row_bytes(self, grid: str, track: str) -> int:
        form = self.form(grid, track)
        return int(np.prod(form.shape)) * form.dtype.itemsize

    def _find(self, address: Address) -> Path:
        """The shard's file: staged still, or published; StoreError when missing or short.

        Never left to zarr, which reads a missing shard as fill without an error. Staged first: a
        shard moves from there to its final name, and what is there replaces what is here.
        """
        grid, track, task = address
        num_rows, shards = self._shards[grid, task]
        final = shard_path(self._root, grid, track, task)
        size = shards[track]["bytes"]
        if not self._attributes.compress:
            row_bytes = self._row_bytes(grid, track)
            size = shard_size(num_rows, self._attributes.rows_per_task, row_bytes)
        for path in (staging_path(self._root) / shards[track]["file"], final):
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                continue
            if found != size:
                raise StoreError(f"{path}: {found} bytes, expected {size}. Run verify.")
            return path
        raise StoreError(f"{final}: shard is missing. Run verify.")

    def _load(self, address: Address) -> Codes:
        try:
            return self._open(address, self._find(address))
        except FileNotFoundError:  # published between the look and the opening
            return self._open(address, self._find(address))

    def _open(self, address: Address, path: Path) -> Codes:
        grid, track, task = address
        num_rows, rows_per_task = self.num_rows(grid, task), self._attributes.rows_per_task
        shape, dtype = self.form(grid, track)
        if self._attributes.compress:
            try:
                return decode_shard(path.read_bytes(), num_rows, rows_per_task, shape, dtype)
            except StoreError as error:
                raise StoreError(f"{path}: {error}. Run verify.") from error
        total = shard_rows(num_rows, rows_per_task)  # fillers included
        return np.asarray(np.memmap(path, dtype, "r", shape=(total, *shape)))

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files itself.
        return {**self.__dict__, "_maps": {}, "_joined": {}}


class RecentlyUsed:
    """The arrays used last, by address, up to a number of bytes; the newest is always kept."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._arrays: OrderedDict[Address, Codes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def get(self, address: Address) -> Codes | None:
        with self._lock:
            if address in self._arrays:
                self._arrays.move_to_end(address)
            return self._arrays.get(address)

    def put(self, address: Address, array: Codes) -> None:
        with self._lock:
            self._arrays[address] = array
            self._arrays.move_to_end(address)
            while len(self._arrays) > 1 and self.nbytes > self._most_bytes:
                self._arrays.popitem(last=False)

    def __reduce__(self) -> tuple[type[RecentlyUsed], tuple[int]]:
        return RecentlyUsed, (self._most_bytes,)  # another process decodes for itself
