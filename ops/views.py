"""The geometry of crops: which part of an image each crop shows."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

CROP_MARGIN = 1.125  # random and ten crops are cut from an image this much larger


class Part(NamedTuple):
    """A rectangle of an image, in its pixels; edges may lie within a pixel."""

    left: float
    top: float
    right: float
    bottom: float


class View(NamedTuple):
    """A rectangle of an upright image as fractions of its width and height, maybe mirrored."""

    mirrored: bool
    left: float
    top: float
    right: float
    bottom: float


def seen_part(
    shape: tuple[int, int], size: tuple[int, int], crop: str, view: int, seed: int, key: str
) -> Part:
    """The part of an image of `shape` (height, width) that a crop of `size` shows.

    The image is scaled to cover `size` (times CROP_MARGIN for random and ten), then cut. `random`
    depends only on (seed, view, key); views 5 to 9 of `ten` show the same parts as 0 to 4.
    """
    height, width = shape
    margin = CROP_MARGIN if crop in ("random", "ten") else 1.0
    scale = margin * max(size[0] / height, size[1] / width)
    shown = min(size[0] / scale, height), min(size[1] / scale, width)
    down, across = _crop_place(crop, view, f"{seed}/{view}/{key}")
    top, left = down * (height - shown[0]), across * (width - shown[1])
    return Part(left, top, min(left + shown[1], width), min(top + shown[0], height))


def _crop_place(crop: str, view: int, name: str) -> tuple[float, float]:
    """The crop's vertical and horizontal position in the space left over, each in [0, 1]."""
    if crop == "random":
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
        down, across = (int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in (0, 8))
        return down, across
    if crop == "ten" and view % 5 < 4:
        return float(view % 5 // 2), float(view % 5 % 2)
    return 0.5, 0.5
