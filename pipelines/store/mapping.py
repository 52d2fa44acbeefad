"""A store's shard files for reading: raw ones memory-mapped, compressed ones decompressed whole."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.store.layout import StoreError, shard_path, staging_path
from pipelines.store.shards import decode_shard, shard_rows, shard_size
from pipelines.store.zarr_metadata import RowForm, StoreAttributes, row_form

Codes = np.ndarray[Any, Any]
Address = tuple[str, str, int]  # grid, track, task


class ShardFiles:
    """The shards that a store's index parts name, each checked for its presence and size.

    Maps stay open. Decompressed shards are kept up to `decoded_bytes`, the last used ones.
    """

    def __init__(self, root: Path, attributes: StoreAttributes, decoded_bytes: int) -> None:
        self._root = root
        self._attributes = attributes
        self._shards: dict[tuple[str, int], tuple[int, Mapping[str, Any]]] = {}
        self._maps: dict[Address, Codes] = {}
        self._decoded = RecentlyUsed(decoded_bytes)

    def add(self, grid: str, task: int, num_rows: int, shards: Mapping[str, Any]) -> None:
        """Add the shards of an index part: {track: {"file", "sha256", "bytes"}}.

        Raises StoreError where one is missing or has another size.
        """
        self._shards[grid, task] = (num_rows, shards)
        for track in shards:
            self._find((grid, track, task))

    def num_rows(self, grid: str, task: int) -> int:
        """Rows in the index of a task; 0 where it is not committed."""
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

    def form(self, grid: str, track: str) -> RowForm:
        """Shape and type of a track's rows; StoreError where the store has no such track."""
        tracks = self._attributes.tracks
        if track not in tracks:
            raise StoreError(f"{self._root} has no track {track!r}; it has {list(tracks)}.")
        return row_form(grid, tracks[track])

    def _find(self, address: Address) -> Path:
        """The shard's file, staged or published; StoreError when it is missing or short.

        Zarr must not be asked: it reads a missing shard as fill without an error. The staged file
        is looked for first, since publishing moves a shard from there to its final path.
        """
        grid, track, task = address
        num_rows, shards = self._shards[grid, task]
        final = shard_path(self._root, grid, track, task)
        size = shards[track]["bytes"]
        if not self._attributes.compress:
            form = self.form(grid, track)
            row_bytes = int(np.prod(form.shape)) * form.dtype.itemsize
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
        except FileNotFoundError:  # published between _find and _open
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
        total = shard_rows(num_rows, rows_per_task)  # padding included
        return np.asarray(np.memmap(path, dtype, "r", shape=(total, *shape)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # another process maps the files itself


class RecentlyUsed:
    """The last used arrays, by address, up to a number of bytes; the newest is always kept."""

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
        return RecentlyUsed, (self._most_bytes,)  # another process decompresses for itself
