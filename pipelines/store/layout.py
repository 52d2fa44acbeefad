"""Where everything lies in a code store.

    codes.zarr/zarr.json                group: the store's attributes
      g32x32/image/zarr.json            one array for a grid shape and a track, first axis = row
      g32x32/image/c/<task>/0/0         one task's shard: its raw rows, contiguous from byte 0
      _plan/<part>.parquet              the frozen input
      _index/32x32/<task>.parquet       the outcome of each row of one task
      _tombstones/<n>.parquet           rows whose images are gone from the input
      _tokenizer/image/                 a copy of the tokenizer that made the codes
      _checksums.json                   sha256 of each file of the four folders above
      _sources/                         what archives hold, so that they are not listed again,
                                        which images were left out, and which input is planned
      _rows/<state>/                    what readers need of a large index, as columns: row_table.py
      _staging/                         files being written
      _tracks/depth/                    the track directory of a further track: folders as above,
                                        and _source.json; its arrays lie next to the image's

Functions that take a `root` accept the store's own path or that of a track directory. A store may
come from elsewhere: names in it are parsed here, and none that we would not write becomes a path.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ops import disk, paths
from ops.config import UserError
from ops.files import exclusive_lock, special_files
from ops.paths import AnyPath, ObjectPath, P, join, parent
from ops.text import printable
from pipelines.store.lease import held_lease

FORMAT = 3  # of code stores and of folders of samples
TRACKS = "_tracks"
SOURCES = "_sources"
CLASS = "class"  # the track whose rows are the images' labels

MAX_GRID_CODES = 1 << 26  # 8,192 x 8,192: a row of 256 MiB
NUMBER = "(?:0|[1-9][0-9]{0,8})"  # of a task or part
GRID = re.compile("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
TRACK_NAME = re.compile("[a-z][a-z0-9_]{0,63}")  # short: it is part of longer file names
PART_NAME = re.compile(rf"({NUMBER})\.parquet")
STAGED = re.compile(rf"(?P<grid>{GRID.pattern})-(?P<task>{NUMBER})-.*\.shard")
#: Paths below a store, or a track directory, of files that have a checksum.
LISTED = re.compile(
    rf"(_plan|_tombstones)/{NUMBER}\.parquet|_index/{GRID.pattern}/{NUMBER}\.parquet"
    rf"|_tokenizer/{TRACK_NAME.pattern}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,99}}"
)
TREE_DEPTH = 6  # levels of folders in a store


class StoreError(UserError):
    """A code store that is missing, foreign, corrupt, or made with other settings."""


def check_format(path: AnyPath, found: object, command: str = "encode") -> None:
    """Raise StoreError unless the file at `path`, which `command` wrote, has format FORMAT."""
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        age, remedy = "an older", f"Run {command} again with another --out."
        if newer:
            age, remedy = "a newer", "Use that version."
        raise StoreError(
            f"{path} was written by {age} version of smalti (format {printable(found, 40)}, this "
            f"version reads {FORMAT}). {remedy}"
        )


def grid_name(rows: int, columns: int) -> str:
    """The name of a grid shape: "32x48" is 32 rows of 48 codes."""
    return f"{rows}x{columns}"


def grid_shape(grid: str) -> tuple[int, int]:
    """(rows, columns) of a grid's name.

    Raises StoreError for a name that grid_name does not give, or more than MAX_GRID_CODES codes.
    """
    match = GRID.fullmatch(grid) if isinstance(grid, str) else None
    if match is None or int(match[1]) * int(match[2]) > MAX_GRID_CODES:
        raise StoreError(
            f"{printable(repr(grid), 60)} is no grid of codes, such as 32x48, of at most "
            f"{MAX_GRID_CODES:,} codes."
        )
    return int(match[1]), int(match[2])


def is_track_name(name: object) -> bool:
    """Whether a track may have this name: lower case, digits and _, at most 64 characters."""
    return isinstance(name, str) and TRACK_NAME.fullmatch(name) is not None


def staged_name(grid: str, task: int, track: str, sha256: str) -> str:
    """The name of a shard in the staging folder, by the hash of its content."""
    return f"{grid}-{task}-{track}-{sha256[:32]}.shard"


def part_numbers(folder: AnyPath) -> list[int]:
    """The numbers of the Parquet files of a folder, ascending; none where it does not exist.

    Raises StoreError for a Parquet file whose name is no number.
    """
    return sorted(_part_number(path) for path in paths.matching(folder, "*.parquet"))


def num_parts(folder: AnyPath) -> int:
    """How many parts, numbered from 0, a folder has; StoreError where one is missing between."""
    numbers = part_numbers(folder)
    for expected, number in enumerate(numbers):
        if number != expected:
            path = folder / f"{expected}.parquet"
            raise StoreError(f"{path}: missing, but there are later ones. Restore it from a copy.")
    return len(numbers)


def indexed_tasks(root: AnyPath) -> list[tuple[str, int]]:
    """(grid, task) of every index part of a store.

    Raises StoreError for a Parquet file among them that the store has not written.
    """
    found = []
    for path in paths.matching(root, "_index/*/*.parquet"):
        number = _part_number(path)
        try:
            grid_shape(path.parent.name)
        except StoreError as error:
            raise StoreError(f"{path} is no index part of the store: {error} Remove it.") from error
        found.append((path.parent.name, number))
    return found


def _part_number(path: AnyPath) -> int:
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        raise StoreError(f"{path} is not a file of the store: such names are numbers. Remove it.")
    return int(match[1])


def links_and_pipes(root: AnyPath, *, shards: bool = True) -> Iterator[str]:
    """A problem for each entry below `root` that is neither a regular file nor a folder of a store.

    Without `shards`, the folders that hold nothing but shards are left out. An object store has
    nothing else than objects.
    """
    if isinstance(root, ObjectPath) or not root.is_dir():
        return
    try:
        found = sorted(special_files(root, depth=TREE_DEPTH, not_into="" if shards else "c"))
    except OSError as error:
        raise StoreError(
            f"{error.filename or root}: {error.strerror}. Allow reading it."
        ) from error
    for path, kind in found:
        yield f"{path} is {kind}; a store has only files, in folders of its own. Remove it." + (
            " Where you trust what links lead to, copy with `cp -rL`." if "link" in kind else ""
        )


def refuse_links(root: AnyPath, *, shards: bool = True) -> None:
    """Raise StoreError where links_and_pipes finds anything; `root` itself may be a link."""
    for problem in links_and_pipes(root, shards=shards):
        raise StoreError(problem)


@contextlib.contextmanager
def locked(root: AnyPath) -> Iterator[None]:
    """Hold the lock of the store, or folder of samples, at `root`; LockedError where it is taken.

    Raises StoreError where it has links or pipes: writing could then change files elsewhere, and
    ExclusiveCreateError where two writers could not be kept apart. A folder that a UserError leaves
    as empty as it was is removed again.
    """
    if isinstance(root, ObjectPath):
        paths.check_exclusive_create(staging_path(root))
        with held_lease(lock_path(root)):
            yield
        return
    refuse_links(root)
    is_new = not root.exists()
    with exclusive_lock(lock_path(root)):
        try:
            paths.check_exclusive_create(staging_path(root))
            yield
        except UserError:
            if is_new:
                _remove_unused(root)
            raise


def _remove_unused(root: Path) -> None:
    """Remove a folder that holds nothing but the lock file and lists of archives."""
    staging, lock = staging_path(root), lock_path(root)
    if {*root.iterdir()} <= {staging, root / SOURCES} and list(staging.iterdir()) == [lock]:
        shutil.rmtree(root / SOURCES, ignore_errors=True)
        disk.disk.unlink(lock)
        staging.rmdir()
        root.rmdir()


def track_path(root: P, track: str) -> P:
    """The track directory of a further track: its plan, index and staging folder.

    Raises StoreError for a name that no track has.
    """
    if not is_track_name(track):
        raise StoreError(f"{root}: {printable(repr(track), 60)} is no name of a track.")
    return join(root, TRACKS, track)


def source_path(track_dir: P) -> P:
    return join(track_dir, "_source.json")


def store_root(root: P) -> P:
    """The store that `root` is, or whose track directory it is."""
    return parent(parent(root)) if root.parent.name == TRACKS else root


def track_name(root: AnyPath) -> str:
    """The track whose directory `root` is; a store's own directory is that of track `image`."""
    return root.name if root.parent.name == TRACKS else "image"


def array_path(root: P, grid: str, track: str) -> P:
    return join(store_root(root), f"g{grid}", track)


def shard_path(root: P, grid: str, track: str, task: int) -> P:
    return join(array_path(root, grid, track), "c", str(task), "0", "0")


def index_path(root: P, grid: str, task: int) -> P:
    return join(root, "_index", grid, f"{task}.parquet")


def plan_path(root: P, part: int) -> P:
    return join(root, "_plan", f"{part}.parquet")


def tombstones_path(root: P, part: int) -> P:
    return join(root, "_tombstones", f"{part}.parquet")


def checksums_path(root: P) -> P:
    return join(root, "_checksums.json")


def staging_path(root: P) -> P:
    return join(root, "_staging")


def lock_path(root: P) -> P:
    """The file that a driver holds locked while it writes below `root`."""
    return join(staging_path(root), "driver.lock")


def tokenizer_path(root: P, track: str) -> P:
    return join(root, "_tokenizer", track)


def tokenizer_folder(root: P) -> P:
    """The tokenizer kept for a store or track; the image's where a track has none of its own."""
    own = tokenizer_path(root, track_name(root))
    return own if paths.is_folder(own) else tokenizer_path(store_root(root), "image")
