"""Pictures with holes: transparent where something is to be put."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ops.images import (
    TRANSPOSITIONS,
    ImageArray,
    decode_image,
    opened_image,
    orientation_of,
    resize_and_crop,
)

BOX = Image.Resampling.BOX
OPAQUE = 128  # of 255: less and a pixel is part of a hole
WHOLLY = 250  # of 255 after resizing: less and a hole's edge is in the pixel


class MaskedImage(NamedTuple):
    """A picture and which of its pixels are known."""

    image: ImageArray  # uint8 (H, W, 3); holes have the mean colour of the rest
    known: NDArray[np.bool_]  # (H, W)


def decode_masked(data: bytes) -> MaskedImage:
    """The upright picture in an image file's bytes; ImageError, see decode_image."""
    image = decode_image(data)
    with opened_image(io.BytesIO(data)) as file:
        if not file.has_transparency_data:
            return MaskedImage(image, np.ones(image.shape[:2], bool))
        orientation = orientation_of(file)
        layers: Image.Image = file.convert("RGBA")
        if orientation in TRANSPOSITIONS:
            layers = layers.transpose(TRANSPOSITIONS[orientation])
        colours, alpha = np.asarray(layers)[..., :3], np.asarray(layers)[..., 3]
    known = alpha >= OPAQUE
    mean = colours[known].mean(0).round() if known.any() else 127
    return MaskedImage(np.where(known[..., None], colours, mean).astype(np.uint8), known)


def resize_masked(masked: MaskedImage, size: tuple[int, int]) -> MaskedImage:
    """The middle of the picture, (height, width); a pixel is known when all that makes it is."""
    known = resize_and_crop(masked.known.astype(np.uint8) * 255, size, resampling=BOX)
    return MaskedImage(resize_and_crop(masked.image, size), known >= WHOLLY)


def known_cells(known: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """Which cells (h, w) of factor x factor pixels are known, of pixels (H, W).

    All their pixels are and all cells' around them: a code is made of more than its own pixels.
    Sides that are no multiple count as if the last row and column went on.
    """
    height, width = known.shape
    padded = np.pad(known, ((0, -height % factor), (0, -width % factor)), mode="edge")
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    whole = padded.reshape(rows, factor, columns, factor).all((1, 3))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(whole, 1, mode="edge"), (3, 3))
    return np.asarray(around.all((2, 3)))
