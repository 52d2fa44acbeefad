"""Images with the same bytes, found at planning: each is compared only with those of its size.

Where several images have one size, the last bytes of each are read; where these are equal too, all
of them. Rows of a table have no size before they are read, so a table is read whole.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.images import ImageError
from pipelines.inputs import content_hash, read_bytes, read_end, thread_map
from pipelines.planning.diff import DUPLICATE

END_BYTES = 4096  # at the end of a file: of JPEG, PNG and WebP they differ where pixels do


class Copy(NamedTuple):
    """An image whose bytes an earlier one has."""

    position: int  # in the table of new images
    key: str  # of the earlier image
    etag: str


def find_copies(new: pa.Table, planned: pa.Table) -> list[Copy]:
    """The images of `new` whose bytes an image of `planned` has, or an earlier one of `new`.

    Both have the columns of ENTRY_SCHEMA. Images that cannot be read are no copies: their rows name
    the error.
    """
    columns = ["key", "uri", "offset", "size", "etag"]
    chosen = new.select(columns)
    entries = pa.concat_tables([planned.select(columns).cast(chosen.schema), chosen])
    readable = pc.not_equal(entries["etag"], DUPLICATE).to_numpy()
    sizes = _sizes(entries)
    groups = _equal_sizes(sizes, readable & (sizes >= 0))
    # A group without a new image needs no reading.
    groups = [group for group in groups if group[-1] >= len(planned)]
    groups = _split(entries, groups, _end_of, "comparing images")
    groups = _split(entries, groups, _hash_of, "comparing images")
    copies = []
    for group in groups:
        first = entries.slice(group[0], 1)
        key, etag = first["key"][0].as_py(), first["etag"][0].as_py()
        copies += [Copy(p - len(planned), key, etag) for p in group[1:] if p >= len(planned)]
    return sorted(copies)


Groups = list[list[int]]  # positions, ascending, of images that may be equal


def _sizes(entries: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The bytes of each image; of rows of tables, which must be read to be known, -1 on failure."""
    sizes = np.array(entries["size"].to_numpy())
    unknown = (sizes == 0) & pc.is_valid(entries["offset"]).to_numpy()
    chosen = entries.filter(pa.array(unknown))
    sizes[unknown] = list(thread_map(_size_of, chosen, "comparing images"))
    return sizes


def _size_of(uri: str, offset: int | None, size: int) -> int:
    try:
        return len(read_bytes(uri, offset, size))
    except ImageError:
        return -1


def _equal_sizes(sizes: np.ndarray[Any, Any], readable: np.ndarray[Any, Any]) -> Groups:
    positions = np.flatnonzero(readable)
    order = positions[np.argsort(sizes[positions], kind="stable")]
    ends = np.flatnonzero(np.diff(sizes[order])) + 1
    return [group.tolist() for group in np.split(order, ends) if len(group) > 1]


def _split(entries: pa.Table, groups: Groups, read: Any, description: str) -> Groups:
    """Groups of the positions that `read` gives the same for; None is equal to nothing."""
    positions = [position for group in groups for position in group]
    chosen = entries.take(pa.array(positions, pa.int64()))
    found = dict(zip(positions, thread_map(read, chosen, description), strict=True))
    split: Groups = []
    for group in groups:
        by_value: defaultdict[str, list[int]] = defaultdict(list)
        for position in group:
            if found[position] is not None:
                by_value[found[position]].append(position)
        split += [same for same in by_value.values() if len(same) > 1]
    return split


def _end_of(uri: str, offset: int | None, size: int) -> str | None:
    try:
        return content_hash(read_end(uri, offset, size, END_BYTES))
    except ImageError:
        return None


def _hash_of(uri: str, offset: int | None, size: int) -> str | None:
    try:
        return content_hash(read_bytes(uri, offset, size))
    except ImageError:
        return None
