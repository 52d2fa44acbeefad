"""Low-resolution images: what super-resolution is conditioned on."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ops.images import ImageArray


def degraded(image: ImageArray, ratio: int) -> ImageArray:
    """The image, uint8 (H, W, 3), shrunk `ratio` times by area averages and enlarged again."""
    height, width = shrunk_size(image.shape[:2], ratio)
    shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    return enlarged(np.asarray(shrunk), image.shape[:2])


def shrunk_size(size: tuple[int, ...], ratio: int) -> tuple[int, int]:
    """`size` (height, width) divided by `ratio`, rounded, at least 1."""
    height, width = (max(1, round(side / ratio)) for side in size)
    return height, width


def enlarged(image: ImageArray, size: tuple[int, ...]) -> ImageArray:
    """The image, uint8 (h, w, 3), resized bicubically to `size` (height, width)."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
