"""Contact sheets: the first samples of a folder in a grid, and their conditions in the same."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ops import paths
from ops.images import MAX_PIXELS, ImageArray, decode_image, image_grid, resize_and_crop, write_png
from ops.paths import AnyPath, P, join
from pipelines.conditioning import ConditionEncoder
from pipelines.generation.outputs import image_path
from pipelines.generation.settings import GenerationRequest

GRID_IMAGES = 64
GAP = 2  # pixels between images
GRID_SIDE = 256  # pixels; larger images are shrunk for the grid


def grid_path(out: P) -> P:
    return join(out, "grid.png")


def conditions_path(out: P, name: str) -> P:
    return join(out, f"condition-{name}.png")


def remove_grids(request: GenerationRequest) -> None:
    """Remove contact sheets, which show an older number of samples."""
    sheets = paths.matching(request.out, conditions_path(request.out, "*").name)
    for path in (grid_path(request.out), *sheets):
        paths.remove(path)


def write_grids(request: GenerationRequest, condition_encoder: ConditionEncoder) -> None:
    """Write condition-NAME.png for each condition and, of two or more samples, grid.png.

    Files that exist are left as they are.
    """
    if request.width * request.height > MAX_PIXELS:
        return
    first = range(min(request.count, GRID_IMAGES))
    sampled = [sample for sample in first if paths.exists(image_path(request.out, sample))]
    for name in condition_encoder.names:
        images = (condition_encoder.preview(name, sample) for sample in sampled)
        _write(conditions_path(request.out, name), images, request)
    if len(sampled) > 1:
        files = (image_path(request.out, sample) for sample in sampled)
        found = (decode_image(paths.read_whole(file)) for file in files)
        _write(grid_path(request.out), found, request)


def _write(path: AnyPath, images: Iterable[ImageArray], request: GenerationRequest) -> None:
    if paths.exists(path):
        return
    scale = min(1.0, GRID_SIDE / max(request.width, request.height))
    size = max(1, round(request.height * scale)), max(1, round(request.width * scale))
    small = [resize_and_crop(image, size) for image in images]
    if small:
        columns = math.ceil(math.sqrt(len(small)))
        with paths.local_file(path) as file:
            write_png(file, image_grid(np.stack(small), columns, GAP))


def grid_cells(grid: ImageArray, count: int) -> list[ImageArray]:
    """The `count` images of a contact sheet, uint8 (H, W, 3); none where it cannot have so many."""
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = -(-count // columns)
    height, width = (side + GAP for side in grid.shape[:2])
    if not count or height % rows or width % columns:
        return []
    height, width = height // rows, width // columns
    places = (divmod(number, columns) for number in range(count))
    return [
        grid[row * height : (row + 1) * height - GAP, column * width : (column + 1) * width - GAP]
        for row, column in places
    ]
