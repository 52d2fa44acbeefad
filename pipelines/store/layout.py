"""Where everything lies in a code store, and the Zarr metadata that describes it.

    codes.zarr/zarr.json                group: the store's attributes
      g32x32/image/zarr.json            one array for a grid shape and a track, first axis = row
      g32x32/image/c/<task>/0/0         one task's shard: its raw rows, contiguous from byte 0
      _plan/<part>.parquet              the frozen input
      _index/32x32/<task>.parquet       what became of each row of one task
      _tombstones/<n>.parquet           rows whose images are gone from the input
      _tokenizer/image/                 a copy of the tokenizer that made the codes
      _checksums.json                   sha256 of each file of the four folders above
      _staging/                         what is being written
      _tracks/depth/                    the books of a further track: folders as above, and
                                        _source.json; its arrays lie beside the image's

The metadata is written by hand rather than through zarr: the same plan then gives the same bytes
whatever the version of zarr, and a worker need not import it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ops.config import ConfigError, UserError, from_json, to_json
from ops.files import json_bytes, json_hash, write_bytes

FORMAT = 2
METADATA_KEY = b"smalti"  # of what our Parquet files say of themselves
ATTRIBUTE = "smalti"  # the group attribute that holds StoreAttributes
TRACKS = "_tracks"
CLASS = "class"  # the track whose rows are the images' labels
MAX_INNER_ROWS = 64  # plain zarr reads at least one inner chunk: 128 KiB of 32x32 codes
# Of an archive's shard: few and long chunks, so that their headers and places weigh little.
MIN_COMPRESSED_ROWS = 256
MAX_COMPRESSED_CHUNKS = 16


class StoreError(UserError):
    """A code store that is missing, foreign, damaged, or made with other settings."""


@dataclass(frozen=True, kw_only=True)
class StoreAttributes:
    """What the group's attributes say about a store."""

    format: int = FORMAT
    rows_per_task: int
    grids: dict[str, int]  # rows planned of each grid shape, "32x32": 4096; fillers included
    label_names: tuple[str, ...] = ()
    compress: bool = False  # shards are coded, to be read whole; else raw, to be mapped in place
    tracks: dict[str, dict[str, Any]] = field(default_factory=dict)  # provenance of each track


def code_dtype(codebook_size: int) -> np.dtype[Any]:
    """The little-endian type that holds codes 0..codebook_size-1 and one fill value above them."""
    return np.dtype("<u2" if codebook_size <= 65535 else "<u4")


def fill_value(dtype: np.dtype[Any]) -> int | float:
    """What rows without content are filled with: the largest integer, never a code; or nan."""
    return float("nan") if dtype.kind == "f" else int(np.iinfo(dtype).max)


class RowForm(NamedTuple):
    """What one row of a track's array is."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]


def row_form(grid: str, provenance: dict[str, Any]) -> RowForm:
    """The form of a track's rows in `grid`: a code for each cell, or `row_shape` numbers."""
    if "row_shape" in provenance:
        height, width = provenance["row_shape"]
        return RowForm((height, width), np.dtype(provenance["dtype"]).newbyteorder("<"))
    return RowForm(grid_shape(grid), code_dtype(provenance["codebook_size"]))


def grid_name(rows: int, columns: int) -> str:
    """The name of a grid shape: "32x48" is 32 rows of 48 codes."""
    return f"{rows}x{columns}"


def grid_shape(grid: str) -> tuple[int, int]:
    """(rows, columns) of a grid's name."""
    rows, columns = grid.split("x")
    return int(rows), int(columns)


@cache
def inner_rows(rows_per_task: int, compress: bool = False) -> int:
    """Rows of one inner chunk, a divisor of `rows_per_task`.

    Of raw shards the largest up to MAX_INNER_ROWS; of compressed ones the smallest that keeps to
    MIN_COMPRESSED_ROWS and MAX_COMPRESSED_CHUNKS.
    """
    divisors = [n for n in range(1, rows_per_task + 1) if rows_per_task % n == 0]
    if not compress:
        return max(n for n in divisors if n <= MAX_INNER_ROWS)
    least = max(MIN_COMPRESSED_ROWS, -(-rows_per_task // MAX_COMPRESSED_CHUNKS))
    return min(n for n in divisors if n >= min(least, rows_per_task))


def track_path(root: Path, track: str) -> Path:
    """Where a further track of the store at `root` keeps its plan, index and staging folder."""
    return root / TRACKS / track


def source_path(track_dir: Path) -> Path:
    return track_dir / "_source.json"


def store_root(root: Path) -> Path:
    """The store that `root` is, or whose track's books it is."""
    return root.parent.parent if root.parent.name == TRACKS else root


def track_name(root: Path) -> str:
    """The track whose books `root` is; a store's own are those of track `image`."""
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


def tokenizer_path(root: Path, track: str) -> Path:
    return root / "_tokenizer" / track


def tokenizer_folder(root: Path) -> Path:
    """The tokenizer of a store or of a track's books: the image's, where a track has none."""
    own = tokenizer_path(root, track_name(root))
    return own if own.is_dir() else tokenizer_path(store_root(root), "image")


def array_metadata(
    shape: tuple[int, int, int], rows_per_task: int, dtype: np.dtype[Any], compress: bool
) -> Any:
    """The `zarr.json` of one array: Zarr v3, the sharding codec around raw or coded chunks."""
    rows, height, width = shape
    raw = {"name": "bytes", "configuration": {"endian": "little"}}
    blosc = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "typesize": dtype.itemsize}
    coded = {"name": "blosc", "configuration": {**blosc, "blocksize": 0}}
    sharding = {
        "chunk_shape": [inner_rows(rows_per_task, compress), height, width],
        "codecs": [raw, coded] if compress else [raw],
        "index_codecs": [raw, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, height, width],
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [rows_per_task, height, width]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if dtype.kind == "f" else fill_value(dtype),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["row", "item", "value"] if dtype.kind == "f" else ["row", "y", "x"],
    }


def group_metadata(attributes: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    """The `zarr.json` of a group; `members` (path -> its metadata) are the consolidated ones.

    Consolidated, so that listing the group's members does not meet (and warn of) our own folders.
    """
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": consolidated,
    }


def metadata_files(attributes: StoreAttributes) -> dict[str, Any]:
    """The content of every `zarr.json` of a store, by path below it, the store's own last."""
    files: dict[str, Any] = {}
    members: dict[str, Any] = {}
    for grid, rows in sorted(attributes.grids.items()):
        arrays = {}
        for track, provenance in sorted(attributes.tracks.items()):
            form = row_form(grid, provenance)
            arrays[track] = array_metadata(
                (rows, *form.shape), attributes.rows_per_task, form.dtype, attributes.compress
            )
            files[f"g{grid}/{track}/zarr.json"] = arrays[track]
        files[f"g{grid}/zarr.json"] = group_metadata({}, arrays)
        members[f"g{grid}"] = group_metadata({}, {})
        members |= {f"g{grid}/{track}": array for track, array in arrays.items()}
    files["zarr.json"] = group_metadata({ATTRIBUTE: to_json(attributes)}, members)
    return files


def sealed(description: dict[str, Any]) -> str:
    """What a Parquet file says of itself, with a hash: the format's own checksums leave it out."""
    return json.dumps({**description, "hash": json_hash(description)}, sort_keys=True)


def unsealed(path: Path, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """What the Parquet file at `path` says of itself in its `metadata`.

    Raises StoreError where it is of another format, KeyError, TypeError or ValueError if damaged.
    """
    description: dict[str, Any] = json.loads((metadata or {})[METADATA_KEY])
    own = description.pop("hash", None)
    if own is not None and own != json_hash(description):
        raise ValueError("its description is not what its hash says")
    if own is None or description["format"] != FORMAT:
        written = description["format"]
        raise StoreError(f"{path} has store format {written}; this version reads {FORMAT}.")
    return description


def write_metadata(root: Path, attributes: StoreAttributes) -> None:
    """Write every `zarr.json` of the store; done again, it changes nothing."""
    for name, data in metadata_files(attributes).items():
        write_if_changed(root / name, data)


def write_if_changed(path: Path, data: Any) -> None:
    """Write a JSON file unless it says this already: a second run must not touch the store."""
    if not says(path, data):
        write_bytes(path, json_bytes(data))


def says(path: Path, data: Any) -> bool:
    """Whether a JSON file is there and has the very bytes that `data` is written as."""
    try:
        return path.read_bytes() == json_bytes(data)
    except FileNotFoundError:
        return False


def read_attributes(root: Path) -> StoreAttributes:
    """The attributes of the store at `root`; raises StoreError where there is none."""
    path = root / "zarr.json"
    if not path.is_file():
        raise StoreError(f"{root} is not a code store: it has no zarr.json. Make one with encode.")
    try:
        data = json.loads(path.read_text())["attributes"][ATTRIBUTE]
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f"{root} is not a code store: its zarr.json has no {ATTRIBUTE!r} attribute."
        ) from None
    if data.get("format") != FORMAT:
        raise StoreError(
            f"{root} has store format {data.get('format')}; this version reads {FORMAT}."
        )
    try:
        return from_json(StoreAttributes, data)
    except ConfigError as error:
        raise StoreError(f"{path}: {error}") from error
