"""The grid shape each image's codes will have: one for all, or by its own aspect."""

from __future__ import annotations

import io

import pyarrow as pa

from ops.images import ImageError, Transform, image_size
from pipelines.inputs import open_regular, read_bytes, thread_map
from pipelines.store import grid_name

NO_GRID = grid_name(1, 1)  # for what shows no size: a ledger row without codes should be small


def grids_of(transform: Transform, entries: pa.Table) -> pa.Array:
    """Names of grid shapes, one for each entry; only native ones ask for the images' headers."""
    factor = transform.multiple_of

    def of_size(width: int, height: int) -> str:
        rows, columns = transform.target_size(width, height)
        return grid_name(rows // factor, columns // factor)

    def of_file(uri: str, offset: int | None, size: int) -> str:
        try:
            return of_size(*_size_in_header(uri, offset, size))
        except ImageError:
            return NO_GRID

    if transform.crop != "native":
        return pa.repeat(of_size(1, 1), len(entries))
    return pa.array(thread_map(of_file, entries, "reading headers"), pa.string())


def _size_in_header(uri: str, offset: int | None, size: int) -> tuple[int, int]:
    if offset is not None:  # Pillow would take the start of the file for the start of the image
        return image_size(io.BytesIO(read_bytes(uri, offset, size)))
    with open_regular(uri) as file:
        return image_size(file)
