"""A store's shard files for reading: raw ones memory-mapped, compressed ones decompressed whole.

Shards of a store in an object store are copied to local files first, whole, by a FileCache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple

import numpy as np

from ops.cache import ArrayCache
from ops.file_cache import FileCache
from ops.files import NotRegularError
from ops.paths import AnyPath, ObjectPath, file_info, join, list_objects, read_whole
from pipelines.store.layout import StoreError, shard_path, staging_path, store_root
from pipelines.store.shards import decode_shard, max_shard_size, shard_rows, shard_size
from pipelines.store.zarr_metadata import RowForm, StoreAttributes, row_form

Codes = np.ndarray[Any, Any]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Address = tuple[str, str, int]  # grid, track, task


class ShardFiles:
    """The shards that a store's index parts name, each checked for its presence and size.

    Maps stay open, those of copies in `cache` as long as it keeps the copies. Decompressed shards
    are kept up to `decoded_bytes`, the last used ones.
    """

    def __init__(
        self,
        root: AnyPath,
        attributes: StoreAttributes,
        decoded_bytes: int,
        cache: FileCache,
    ) -> None:
        self._root = root
        self._cache = cache
        #: Sizes of an object store's objects, by URI, when the store was opened.
        self._sizes: dict[str, int] = {}
        if isinstance(root, ObjectPath):
            self._sizes = {str(o.path): o.size for o in list_objects(store_root(root))}
        self._attributes = attributes
        self._shards: dict[tuple[str, int], tuple[int, Mapping[str, Any]]] = {}
        self._tracks: dict[tuple[str, str], _Track] = {}
        self._decompressed = ArrayCache[Address](decoded_bytes)

    def add(self, grid: str, task: int, num_rows: int, shards: Mapping[str, Any]) -> None:
        """Add the shards of an index part: {track: {"file", "sha256", "bytes"}}.

        Raises StoreError where one is missing or has another size.
        """
        self._shards[grid, task] = (num_rows, shards)
        for track in shards:
            self._find((grid, track, task))

    def form(self, grid: str, track: str) -> RowForm:
        """Shape and type of a track's rows; StoreError where the store has no such track."""
        tracks = self._attributes.tracks
        if track not in tracks:
            raise StoreError(f"{self._root} has no track {track!r}; it has {list(tracks)}.")
        return row_form(grid, tracks[track])

    def read(self, grid: str, track: str, rows: IntArray) -> Codes:
        """Codes (n, h, w) of row numbers (n,), as stored; StoreError for rows not committed."""
        opened = self._open_track(grid, track)
        tasks, within = np.divmod(rows, self._attributes.rows_per_task)
        if (within >= opened.num_committed(tasks)).any():
            raise StoreError(f"{self._root}: rows {rows} of grid {grid} are not all in the index.")
        if self._attributes.compress:
            found = np.empty(len(rows), opened.row_type)
            for task in np.unique(tasks).tolist():  # so that each is decompressed once
                chosen = np.flatnonzero(tasks == task)
                found[chosen] = self._decompress((grid, track, task)).take(within[chosen])
        elif len(rows) > 1 and tasks.min() == tasks.max():
            found = opened.maps[int(tasks[0])].take(within, mode="clip")  # nothing is clipped
        else:
            found = opened.scattered(tasks, within)
        return found.view(opened.form.dtype).reshape(-1, *opened.form.shape)

    def _open_track(self, grid: str, track: str) -> _Track:
        if (grid, track) not in self._tracks:
            rows = {task: rows for (g, task), (rows, _) in self._shards.items() if g == grid}
            rows[np.iinfo(np.int64).max] = 0
            tasks = np.array(sorted(rows), np.int64)
            committed = np.array([rows[task] for task in tasks.tolist()], np.int64)
            form = self.form(grid, track)
            remote = isinstance(self._root, ObjectPath)
            maps = _Maps(
                lambda task: self._load((grid, track, task)),
                (lambda task: not self._has_copy(grid, track, task)) if remote else None,
            )
            self._tracks[grid, track] = _Track(form, _raw(form), tasks, committed, maps)
        return self._tracks[grid, track]

    def _decompress(self, address: Address) -> Codes:
        """The committed rows of a compressed shard, each as raw bytes."""
        rows = self._decompressed.get(address)
        if rows is None:
            rows = self._load(address)
            self._decompressed.put(address, rows)
        return rows

    def copy(self, grid: str, track: str, task: int) -> None:
        """Make a local copy of a shard of an object store, if there is none yet."""
        if isinstance(self._root, ObjectPath):
            self._local(address := (grid, track, task), self._find(address))

    def _has_copy(self, grid: str, track: str, task: int) -> bool:
        return self._cache.path_of(self._shards[grid, task][1][track]["sha256"]).exists()

    def _find(self, address: Address) -> AnyPath:
        """The shard's file, staged or published; StoreError when it is missing or short.

        Zarr must not be asked: it reads a missing shard as fill without an error. The staged file
        is looked for first, since publishing moves a shard from there to its final path.
        """
        grid, track, task = address
        num_rows, shards = self._shards[grid, task]
        final = shard_path(self._root, grid, track, task)
        size, rows_per_task = shards[track]["bytes"], self._attributes.rows_per_task
        row_bytes = _raw(self.form(grid, track)).itemsize
        if not self._attributes.compress:
            size = shard_size(num_rows, rows_per_task, row_bytes)
        elif size > max_shard_size(num_rows, rows_per_task, row_bytes):
            raise StoreError(f"{final}: no {num_rows} rows have {size:,} bytes. Run verify.")
        staged = join(staging_path(self._root), shards[track]["file"])
        if isinstance(final, ObjectPath):
            return self._find_object(final, (staged, final), size)
        for path in (staged, final):
            assert isinstance(path, Path)
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if not S_ISREG(found.st_mode):
                raise StoreError(f"{path} is no regular file. Run verify.")
            if found.st_size != size:
                raise StoreError(f"{path}: {found.st_size} bytes, expected {size}. Run verify.")
            if path == final:
                self._check_folders(final)
            return path
        raise StoreError(f"{final}: shard is missing. Run verify.")

    def _find_object(self, final: ObjectPath, named: Sequence[AnyPath], size: int) -> AnyPath:
        for known in (True, False):  # it may have been published since the listing
            for path in named:
                found = self._sizes.get(str(path)) if known else _size_now(path)
                if found is None:
                    continue
                if found != size:
                    raise StoreError(f"{path}: {found} bytes, expected {size}. Run verify.")
                return path
        raise StoreError(f"{final}: shard is missing. Run verify.")

    def _local(self, address: Address, path: AnyPath) -> Path:
        """A shard's file, or the local copy of its object."""
        if not isinstance(path, ObjectPath):
            return path
        _, shards = self._shards[address[0], address[2]]
        try:
            return self._cache.get(path, shards[address[1]]["sha256"])
        except FileNotFoundError:
            self._sizes.pop(str(path), None)
            raise

    def _check_folders(self, shard: Path) -> None:
        """Raise StoreError where a folder of this shard alone is a link; others are checked once,
        when the store is opened."""
        for folder in (shard.parent, shard.parent.parent):
            if not S_ISDIR(folder.lstat().st_mode):
                raise StoreError(f"{folder} is a symbolic link; a store has none. Run verify.")

    def _load(self, address: Address) -> Codes:
        """The rows of a shard (at least those committed), each as raw bytes."""
        try:
            return self._open(address, self._find(address))
        except FileNotFoundError:  # published between _find and _open
            return self._open(address, self._find(address))

    def _open(self, address: Address, path: AnyPath) -> Codes:
        grid, track, task = address
        num_rows, rows_per_task = self._shards[grid, task][0], self._attributes.rows_per_task
        form = self.form(grid, track)
        local = self._local(address, path)
        if not self._attributes.compress:
            total = shard_rows(num_rows, rows_per_task)  # padding included
            return np.asarray(np.memmap(local, _raw(form), "r", shape=total))
        try:
            data = read_whole(local, follow=False)
            codes = decode_shard(data, num_rows, rows_per_task, *form)
        except (StoreError, NotRegularError) as error:
            raise StoreError(f"{path}: {error}. Run verify.") from error
        return codes.reshape(-1).view(_raw(form))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tracks": {}}  # another process maps the files itself


def _size_now(path: AnyPath) -> int | None:
    found = file_info(path)
    return None if found is None else found.size


def _raw(form: RowForm) -> np.dtype[Any]:
    """The type of one row as raw bytes."""
    return np.dtype((np.void, int(np.prod(form.shape)) * form.dtype.itemsize))


class _Maps(dict[int, Codes]):
    """Memory maps by task number, each opened when it is first used; `views` are their bytes.

    Those of which `is_gone` are closed when another is opened: they keep space of the disk.
    """

    def __init__(self, load: Callable[[int], Codes], is_gone: Callable[[int], bool] | None) -> None:
        super().__init__()
        self._load, self._is_gone = load, is_gone
        self.views = _Views(self)

    def __missing__(self, task: int) -> Codes:
        self[task] = self._load(task)
        if self._is_gone is not None:
            for gone in [other for other in self if other != task and self._is_gone(other)]:
                self.views.pop(gone, None)
                del self[gone]
        return self[task]


class _Views(dict[int, memoryview]):
    def __init__(self, maps: _Maps) -> None:
        super().__init__()
        self._maps = maps

    def __missing__(self, task: int) -> memoryview:
        self[task] = self._maps[task].view(np.uint8).data
        return self[task]


class _Track(NamedTuple):
    """One grid and track as it is read."""

    form: RowForm
    row_type: np.dtype[Any]  # of one row as raw bytes
    tasks: IntArray  # committed task numbers, ascending, then a number above all
    committed: IntArray  # how many rows the index has of each of them; 0 for the last
    maps: _Maps

    def num_committed(self, tasks: IntArray) -> IntArray:
        """How many rows of each of `tasks` (n,) are committed; 0 for those that are not."""
        places = np.searchsorted(self.tasks, tasks)
        found: IntArray = np.where(self.tasks[places] == tasks, self.committed[places], 0)
        return found

    def scattered(self, tasks: IntArray, within: IntArray) -> Codes:
        """The rows at places `within` of the shards of `tasks`, each as raw bytes.

        Bytes are joined row by row: rows of a shuffled batch lie in nearly as many shards, and an
        indexing call of numpy for each shard takes several times as long.
        """
        size, views = self.row_type.itemsize, self.maps.views
        starts = (within * size).tolist()
        parts = [
            views[task][start : start + size]
            for task, start in zip(tasks.tolist(), starts, strict=True)
        ]
        return np.frombuffer(bytearray().join(parts), self.row_type)
