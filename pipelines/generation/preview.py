"""preview.png: the image being sampled, decoded so far, grey where no code is drawn yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from ops.images import ImageArray, to_image
from ops.paths import P, join
from ops.png import write_png_strips
from tokenizer import VQGAN, decode_strips

SECONDS = 5.0  # between two previews
SHARE = 0.1  # of the time, at most; previews of a large canvas are less frequent
GREY = 127
GREY_ROWS = 512  # of pixels written at a time


def preview_path(out: P) -> P:
    return join(out, "preview.png")


class Preview:
    """Rewrites a folder's preview.png when called, at most every SECONDS."""

    def __init__(self, out: Path, tokenizer: VQGAN, width: int, height: int) -> None:
        self._path, self._tokenizer = preview_path(out), tokenizer
        self._width, self._height = width, height
        self._due = time.monotonic() + SECONDS

    def __call__(self, codes: Tensor) -> None:
        """Codes (rows, columns) so far, -1 where none is drawn yet."""
        began = time.monotonic()
        if began >= self._due:
            strips = preview_strips(self._tokenizer, codes, self._width, self._height)
            write_png_strips(self._path, self._width, self._height, strips)
            now = time.monotonic()
            self._due = now + max(SECONDS, (now - began) / SHARE)


def preview_strips(
    tokenizer: VQGAN, codes: Tensor, width: int, height: int
) -> Iterator[ImageArray]:
    """The image in strips, uint8 (h, width, 3), from codes (rows, columns) with -1 for none."""
    factor = tokenizer.config.downsample_factor
    device = next(tokenizer.parameters()).device
    drawn = (codes >= 0).cpu().numpy()
    begun = int(np.flatnonzero(drawn.any(axis=1)).max(initial=-1)) + 1
    top = 0
    if begun:
        known = codes[None, :begun].clamp(min=0).to(device)
        for strip in decode_strips(tokenizer, known, (min(height, begun * factor), width)):
            image = to_image(strip)[0]
            rows = np.arange(top, top + len(image)) // factor
            image[~drawn[rows][:, np.arange(width) // factor]] = GREY
            yield image
            top += len(image)
    for first in range(top, height, GREY_ROWS):
        yield np.full((min(GREY_ROWS, height - first), width, 3), GREY, np.uint8)
