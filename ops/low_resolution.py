"""Pictures as coarse as if they had been small: what super-resolution starts from."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ops.images import ImageArray


def degraded(image: ImageArray, ratio: int) -> ImageArray:
    """uint8 (H, W, 3) shrunk `ratio` times by averages of area, and enlarged again (bicubic)."""
    height, width = image.shape[:2]
    small = max(1, round(width / ratio)), max(1, round(height / ratio))
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BICUBIC))
