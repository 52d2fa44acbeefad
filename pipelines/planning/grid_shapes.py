"""The grid shape of each image's codes: one for all, or by the image's aspect ratio."""

from __future__ import annotations

import io

import pyarrow as pa

from ops.images import ImageError, Transform, image_size
from ops.transient_errors import with_retries
from pipelines.inputs import open_image_file, read_bytes, thread_map
from pipelines.store import grid_name

NO_GRID = grid_name(1, 1)  # for images of unknown size: their rows hold fill values only


def grids_of(transform: Transform, entries: pa.Table) -> pa.Array:
    """The name of the grid shape of each entry; reads the images' headers only for native crops."""
    factor = transform.multiple_of

    def of_size(width: int, height: int) -> str:
        rows, columns = transform.target_size(width, height)
        return grid_name(rows // factor, columns // factor)

    def of_file(uri: str, offset: int | None, size: int) -> str:
        try:
            return of_size(*size_in_header(uri, offset, size))
        except ImageError:
            return NO_GRID

    if transform.crop != "native":
        return pa.repeat(of_size(1, 1), len(entries))
    return pa.array(thread_map(of_file, entries, "reading headers"), pa.string())


@with_retries
def size_in_header(uri: str, offset: int | None, size: int) -> tuple[int, int]:
    """(width, height) of an upright image; raises ImageError where its header cannot be read."""
    if offset is not None:  # Pillow reads a header from the start of the file
        return image_size(io.BytesIO(read_bytes(uri, offset, size)))
    with open_image_file(uri, size) as file:
        return image_size(file)
