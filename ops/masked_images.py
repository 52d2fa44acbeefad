"""Images with holes for inpainting: transparent pixels are unknown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ops.images import ImageArray, read_layers, resize_and_crop

BOX = Image.Resampling.BOX
MIN_ALPHA = 128  # of 255: below it a pixel is unknown
MIN_KNOWN = 250  # of 255 after resizing: below it unknown pixels contribute to the pixel


class MaskedImage(NamedTuple):
    """An image and which of its pixels are known."""

    image: ImageArray  # uint8 (H, W, 3); unknown pixels have the mean colour of the known ones
    known: NDArray[np.bool_]  # (H, W)


def decode_masked(data: bytes) -> MaskedImage:
    """The image in a file's bytes, upright; raises ImageError as decode_image does."""
    layers = read_layers(data)
    colours = np.asarray(layers.colours)
    if layers.alpha is None:
        return MaskedImage(colours, np.ones(colours.shape[:2], bool))
    alpha = np.asarray(layers.alpha)
    known = alpha >= MIN_ALPHA
    mean = colours[known].mean(0).round() if known.any() else 127
    return MaskedImage(np.where(known[..., None], colours, mean).astype(np.uint8), known)


def resize_masked(masked: MaskedImage, size: tuple[int, int]) -> MaskedImage:
    """Resized and centre-cropped to `size` (height, width).

    A pixel is known if all the pixels that contribute to it are.
    """
    known = resize_and_crop(masked.known.astype(np.uint8) * 255, size, resampling=BOX)
    return MaskedImage(resize_and_crop(masked.image, size), known >= MIN_KNOWN)


def known_cells(known: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """Which cells (h, w) of factor x factor pixels are known, from pixels (H, W).

    A cell is known if all pixels in it and in the eight cells around it are, since a code depends
    on more than its own pixels. Sides that are not multiples of `factor` are padded by their edge.
    """
    height, width = known.shape
    padded = np.pad(known, ((0, -height % factor), (0, -width % factor)), mode="edge")
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    whole = padded.reshape(rows, factor, columns, factor).all((1, 3))
    neighbours = np.lib.stride_tricks.sliding_window_view(np.pad(whole, 1, mode="edge"), (3, 3))
    return np.asarray(neighbours.all((2, 3)))
