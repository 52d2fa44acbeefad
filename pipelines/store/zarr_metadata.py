"""The Zarr v3 metadata of a code store, and the attributes in it that describe the store.

Zarr decides what the metadata says, and the files are written like all others of a store. Neither
workers nor readers import zarr.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ops.config import ConfigError, from_json, to_json
from ops.files import NotRegularError, parse_json
from ops.paths import AnyPath, exists, join, read_json_at, write_json_if_changed
from pipelines.store.layout import FORMAT, StoreError, check_format, grid_shape
from pipelines.store.validation import (
    MAX_ROWS_PER_TASK,
    MAX_TASK_BYTES,
    check_grids,
    check_range,
    check_tracks,
)

ATTRIBUTE = "smalti"  # the group attribute that holds StoreAttributes
MAX_INNER_ROWS = 64  # plain zarr reads at least one inner chunk: 128 KiB of 32x32 codes
# Of a compressed shard: few and long chunks, so that their headers and offsets take little space.
MIN_COMPRESSED_ROWS = 256
MAX_COMPRESSED_CHUNKS = 16


@dataclass(frozen=True, kw_only=True)
class StoreAttributes:
    """A store's description in its group's attributes.

    Raises ConfigError for values that no store has.
    """

    format: int = FORMAT
    rows_per_task: int
    grids: dict[str, int]  # rows of each grid shape, "32x32": 4096, gaps included
    label_names: tuple[str, ...] = ()
    compress: bool = False  # shards compressed, to be read whole; else raw, to be memory-mapped
    tracks: dict[str, dict[str, Any]] = field(default_factory=dict)  # provenance of each track

    def __post_init__(self) -> None:
        check_range("rows_per_task", self.rows_per_task, 1, MAX_ROWS_PER_TASK)
        for name in ("grids", "tracks"):
            if not isinstance(getattr(self, name), dict):
                raise ConfigError(f"{name} must be an object.")
        check_grids(self.grids)
        check_tracks(self.tracks)
        for grid in self.grids:
            for track, provenance in self.tracks.items():
                shape, dtype = row_form(grid, provenance)
                if shape[0] * shape[1] * dtype.itemsize * self.rows_per_task > MAX_TASK_BYTES:
                    raise ConfigError(
                        f"a task of {self.rows_per_task:,} rows of track {track} in grid {grid} "
                        f"would have more than {MAX_TASK_BYTES:,} bytes."
                    )


def code_dtype(codebook_size: int) -> np.dtype[Any]:
    """The little-endian type that holds codes 0..codebook_size-1 and one fill value above them."""
    return np.dtype("<u2" if codebook_size <= 65535 else "<u4")


def fill_value(dtype: np.dtype[Any]) -> int | float:
    """The value of rows without codes: the largest integer, never a code; NaN for floats."""
    return float("nan") if dtype.kind == "f" else int(np.iinfo(dtype).max)


class RowForm(NamedTuple):
    """Shape and type of one row of a track's array."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]


def row_form(grid: str, provenance: dict[str, Any]) -> RowForm:
    """The form of a track's rows in `grid`: a code for each cell, or numbers of `row_shape`."""
    if "row_shape" in provenance:
        height, width = provenance["row_shape"]
        return RowForm((height, width), np.dtype(provenance["dtype"]).newbyteorder("<"))
    return RowForm(grid_shape(grid), code_dtype(provenance["codebook_size"]))


@cache
def inner_rows(rows_per_task: int, compress: bool = False) -> int:
    """Rows of one inner chunk, a divisor of `rows_per_task`.

    Raw shards: the largest divisor up to MAX_INNER_ROWS. Compressed ones: the smallest of at least
    MIN_COMPRESSED_ROWS rows that gives at most MAX_COMPRESSED_CHUNKS chunks.
    """
    if not compress:
        return max(n for n in range(1, MAX_INNER_ROWS + 1) if rows_per_task % n == 0)
    least = max(MIN_COMPRESSED_ROWS, -(-rows_per_task // MAX_COMPRESSED_CHUNKS))
    rows = range(min(least, rows_per_task), rows_per_task + 1)
    return next(n for n in rows if rows_per_task % n == 0)


def metadata_files(attributes: StoreAttributes) -> dict[str, Any]:
    """The content of every `zarr.json` of a store, by path below it, the store's own last.

    Zarr makes them, in memory. The groups have consolidated metadata, so that zarr lists the
    members from it and does not warn about our own folders.
    """
    import zarr  # here, since only drivers and verify need it, and importing it takes 0.4 s
    from zarr.storage import MemoryStore

    found: dict[str, Any] = {}
    store = MemoryStore(found)
    root = zarr.create_group(store, attributes={ATTRIBUTE: to_json(attributes)})
    for grid in sorted(attributes.grids):
        group = root.create_group(f"g{grid}")
        for track in sorted(attributes.tracks):
            _create_array(group, grid, track, attributes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")  # of Zarr 3, not of its version
        for path in (*(f"g{grid}" for grid in sorted(attributes.grids)), ""):
            zarr.consolidate_metadata(store, path=path)
    files = {name: _plain(parse_json(data.to_bytes())) for name, data in found.items()}
    return dict(sorted(files.items(), key=lambda file: file[0] == "zarr.json"))


def _create_array(group: Any, grid: str, track: str, attributes: StoreAttributes) -> None:
    """Make the array of a grid and track: the sharding codec around raw or compressed chunks."""
    from zarr.codecs import BloscCodec, BytesCodec

    form, per_task = row_form(grid, attributes.tracks[track]), attributes.rows_per_task
    compressors = []
    if attributes.compress:
        size = form.dtype.itemsize
        blosc = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=size, blocksize=0)
        compressors.append(blosc)
    group.create_array(
        track,
        shape=(attributes.grids[grid], *form.shape),
        dtype=form.dtype,
        shards=(per_task, *form.shape),
        chunks=(inner_rows(per_task, attributes.compress), *form.shape),
        filters=[],
        serializer=BytesCodec(endian="little"),
        compressors=compressors,
        fill_value=fill_value(form.dtype),
        dimension_names=("row", "item", "value") if form.dtype.kind == "f" else ("row", "y", "x"),
    )


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """A `zarr.json` without an empty list of storage transformers, which older stores lack too."""
    if document.get("storage_transformers") == []:
        del document["storage_transformers"]
    for member in document.get("consolidated_metadata", {}).get("metadata", {}).values():
        _plain(member)
    return document


def write_metadata(root: AnyPath, attributes: StoreAttributes) -> None:
    """Write every `zarr.json` of the store; files that are right already are not touched."""
    for name, data in metadata_files(attributes).items():
        write_json_if_changed(join(root, *name.split("/")), data)


def read_attributes(root: AnyPath) -> StoreAttributes:
    """The attributes of the store at `root`; raises StoreError where there is none."""
    path = join(root, "zarr.json")
    if not exists(path):
        raise StoreError(f"{root} is not a code store: it has no zarr.json. Make one with encode.")
    try:
        data = dict(read_json_at(path, follow=False)["attributes"][ATTRIBUTE])
    except (OSError, NotRegularError) as error:
        raise StoreError(f"{path}: cannot be read ({error}).") from error
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f"{root} is not a code store: its zarr.json has no {ATTRIBUTE!r} attribute."
        ) from None
    check_format(root, data.get("format"))
    try:
        attributes = from_json(StoreAttributes, data)
    except (ConfigError, ValueError, TypeError) as error:
        raise StoreError(f"{path}: {error}") from error
    if "image" not in attributes.tracks:
        raise StoreError(f"{path}: it has no track image.")
    return attributes
