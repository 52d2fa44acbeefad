"""Grey image files to label maps and depth maps at full precision.

ops.images converts photographs to eight bits; here a sample keeps its value. EXIF orientation is
applied as it is there, so that a map stays aligned with its photograph.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile

from ops.images import (
    GREY_LEVELS,
    TRANSPOSITIONS,
    ImageError,
    Raster,
    opened_image,
    orientation_of,
    raw_mode,
)

LOSSY = ("AVIF", "JPEG", "JPEG2000", "WEBP")
DEPTH_LEVELS = 65535  # the highest 16-bit sample


def decode_labels(data: bytes) -> Raster:
    """Labels, uint8 or int32 (H, W), from the bytes of a grey or palette image file.

    A palette image gives its indices, not its colours. Raises ImageError for broken, lossily
    compressed or coloured files and for negative labels.
    """
    with _opened(data) as file:
        if file.format in LOSSY:
            raise ImageError(
                "not labels", f"{file.format} is lossy and changes labels. Write label maps as PNG"
            )
        divisor = GREY_LEVELS.get(raw_mode(file) or "", 1) if file.mode == "L" else 1
        if not _is_grey(file.mode, "1", "P"):
            raise ImageError(
                "not labels", f"{file.mode} pixels. A label map is a PNG with one number a pixel"
            )
        labels = _upright(file)
    if labels.dtype in (np.bool_, np.uint8):
        return labels.astype(np.uint8) // divisor
    if labels.min() < 0:
        raise ImageError("not labels", f"found label {labels.min()}. Labels start at 0")
    return labels.astype(np.int32)


def decode_depth(data: bytes) -> Raster:
    """Depth, float32 (H, W) in [0, 65535], from the bytes of a grey image file.

    Eight-bit samples are scaled to the same range. Raises ImageError for broken or coloured files
    and for samples outside that range.
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


def _upright(file: ImageFile.ImageFile) -> Raster:
    file.load()
    orientation = orientation_of(file)
    image: Image.Image = file
    if orientation in TRANSPOSITIONS:
        image = file.transpose(TRANSPOSITIONS[orientation])
    return np.asarray(image)
