"""Grey image files to numbers: label maps and depth maps, at full precision.

Photographs go through ops.images, which makes eight bits of everything; here a sample keeps its
value. EXIF orientation is applied here too, so that a map stays with the photograph it belongs to.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from ops.images import TRANSPOSITIONS, ImageError, Raster, opened_image, orientation_of

LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")
GREY_LEVELS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies small grey samples by
DEPTH_LEVELS = 65535  # the nearest, or the farthest: the highest 16-bit sample


def decode_labels(data: bytes) -> Raster:
    """The label of each place, uint8 or int32 (H, W), in a grey or palette image file's bytes.

    Of a palette image the numbers count, not the colours. Raises ImageError where there are no
    labels: broken, lossy or coloured files.
    """
    with _opened(data) as file:
        if file.format in LOSSY:
            raise ImageError(
                "not labels", f"a {file.format} file blurs labels. Write label maps as PNG"
            )
        divisor = _multiplied_by(file) if file.mode == "L" else 1
        if not _is_grey(file.mode, "1", "P"):
            raise ImageError(
                "not labels", f"{file.mode} pixels. A label map has one number a pixel, as PNG"
            )
        labels = _upright(file)
    if labels.dtype in (np.bool_, np.uint8):
        return labels.astype(np.uint8) // divisor
    if labels.min() < 0:
        raise ImageError("not labels", f"a label of {labels.min()}. The lowest one is 0")
    return labels.astype(np.int32)


def decode_depth(data: bytes) -> Raster:
    """The depth of each place, float32 (H, W) from 0 to 65535, in a grey image file's bytes.

    Eight-bit samples are spread over the same range. Raises ImageError where there are none.
    """
    with _opened(data) as file:
        if not _is_grey(file.mode):
            raise ImageError(
                "not depth", f"{file.mode} pixels. A depth map is grey, best a 16-bit PNG"
            )
        depth = _upright(file)
    if depth.dtype == np.uint8:
        return depth.astype(np.float32) * (DEPTH_LEVELS // 255)
    if depth.min() < 0 or depth.max() > DEPTH_LEVELS:
        raise ImageError("not depth", "grey samples of more than 16 bits. Write a 16-bit PNG")
    return depth.astype(np.float32)


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    if not data:
        raise ImageError("empty", "the file has no bytes")
    with opened_image(io.BytesIO(data)) as file:
        yield file


def _is_grey(mode: str, *more: str) -> bool:
    return mode in ("L", "I", *more) or mode.startswith("I;16")


def _multiplied_by(file: ImageFile.ImageFile) -> int:
    """What Pillow will multiply the samples by to fill eight bits."""
    arguments: Any = file.tile[0][3] if file.tile else None
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    return GREY_LEVELS.get(raw, 1)


def _upright(file: ImageFile.ImageFile) -> Raster:
    file.load()
    orientation = orientation_of(file)
    image: Image.Image = file
    if orientation in TRANSPOSITIONS:
        image = file.transpose(TRANSPOSITIONS[orientation])
    return np.asarray(image)
