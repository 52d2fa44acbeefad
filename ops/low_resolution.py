"""Pictures as coarse as if they had been small: what super-resolution starts from."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ops.images import ImageArray


def degraded(image: ImageArray, ratio: int) -> ImageArray:
    """uint8 (H, W, 3) shrunk `ratio` times by averages of area, and enlarged again."""
    height, width = shrunk_size(image.shape[:2], ratio)
    shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    return enlarged(np.asarray(shrunk), image.shape[:2])


def shrunk_size(size: tuple[int, ...], ratio: int) -> tuple[int, int]:
    """(height, width) of a picture of `size` (height, width) that is shrunk `ratio` times."""
    height, width = (max(1, round(side / ratio)) for side in size)
    return height, width


def enlarged(image: ImageArray, size: tuple[int, ...]) -> ImageArray:
    """A small picture, uint8 (h, w, 3), at `size` (height, width): bicubic."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
