"""Where everything lies in a code store.

    codes.zarr/zarr.json                group: the store's attributes
      g32x32/image/zarr.json            one array for a grid shape and a track, first axis = row
      g32x32/image/c/<task>/0/0         one task's shard: its raw rows, contiguous from byte 0
      _plan/<part>.parquet              the frozen input
      _index/32x32/<task>.parquet       the outcome of each row of one task
      _tombstones/<n>.parquet           rows whose images are gone from the input
      _tokenizer/image/                 a copy of the tokenizer that made the codes
      _checksums.json                   sha256 of each file of the four folders above
      _staging/                         files being written
      _tracks/depth/                    the track directory of a further track: folders as above,
                                        and _source.json; its arrays lie next to the image's

Functions that take a `root` accept the store's own path or that of a track directory.
"""

from __future__ import annotations

from pathlib import Path

from ops.config import UserError

FORMAT = 3  # of code stores and of folders of samples
TRACKS = "_tracks"
CLASS = "class"  # the track whose rows are the images' labels


class StoreError(UserError):
    """A code store that is missing, foreign, corrupt, or made with other settings."""


def check_format(path: Path, found: object, command: str = "encode") -> None:
    """Raise StoreError unless the file at `path`, which `command` wrote, has format FORMAT."""
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        age, remedy = "an older", f"Run {command} again with another --out."
        if newer:
            age, remedy = "a newer", "Use that version."
        raise StoreError(
            f"{path} was written by {age} version of smalti (format {found}, this version reads "
            f"{FORMAT}). {remedy}"
        )


def grid_name(rows: int, columns: int) -> str:
    """The name of a grid shape: "32x48" is 32 rows of 48 codes."""
    return f"{rows}x{columns}"


def grid_shape(grid: str) -> tuple[int, int]:
    """(rows, columns) of a grid's name."""
    rows, columns = grid.split("x")
    return int(rows), int(columns)


def track_path(root: Path, track: str) -> Path:
    """The track directory of a further track: its plan, index and staging folder."""
    return root / TRACKS / track


def source_path(track_dir: Path) -> Path:
    return track_dir / "_source.json"


def store_root(root: Path) -> Path:
    """The store that `root` is, or whose track directory it is."""
    return root.parent.parent if root.parent.name == TRACKS else root


def track_name(root: Path) -> str:
    """The track whose directory `root` is; a store's own directory is that of track `image`."""
    return root.name if root.parent.name == TRACKS else "image"


def array_path(root: Path, grid: str, track: str) -> Path:
    return store_root(root) / f"g{grid}" / track


def shard_path(root: Path, grid: str, track: str, task: int) -> Path:
    return array_path(root, grid, track) / "c" / str(task) / "0" / "0"


def index_path(root: Path, grid: str, task: int) -> Path:
    return root / "_index" / grid / f"{task}.parquet"


def plan_path(root: Path, part: int) -> Path:
    return root / "_plan" / f"{part}.parquet"


def tombstones_path(root: Path, part: int) -> Path:
    return root / "_tombstones" / f"{part}.parquet"


def checksums_path(root: Path) -> Path:
    return root / "_checksums.json"


def staging_path(root: Path) -> Path:
    return root / "_staging"


def lock_path(root: Path) -> Path:
    """The file that a driver holds locked while it writes below `root`."""
    return staging_path(root) / "driver.lock"


def tokenizer_path(root: Path, track: str) -> Path:
    return root / "_tokenizer" / track


def tokenizer_folder(root: Path) -> Path:
    """The tokenizer kept for a store or track; the image's where a track has none of its own."""
    own = tokenizer_path(root, track_name(root))
    return own if own.is_dir() else tokenizer_path(store_root(root), "image")
