"""Which part of a picture a way of cropping sees: plain geometry, without a pixel."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

CROP_MARGIN = 1.125  # the random and ten crops are cut from a picture this much larger


class Part(NamedTuple):
    """A rectangle of a picture, in its own pixels; edges lie between pixels, or within one."""

    left: float
    top: float
    right: float
    bottom: float


class View(NamedTuple):
    """A rectangle of an upright picture in fractions of its width and height, perhaps mirrored."""

    mirrored: bool
    left: float
    top: float
    right: float
    bottom: float


def seen_part(
    shape: tuple[int, int], size: tuple[int, int], crop: str, view: int, seed: int, key: str
) -> Part:
    """The part of a picture of `shape` (height, width) that becomes one of `size`.

    The picture is scaled to cover `size` (times CROP_MARGIN for random and ten), then cut.
    `random` depends on (seed, view, key) alone; of `ten`, 5 to 9 see what 0 to 4 do.
    """
    height, width = shape
    margin = CROP_MARGIN if crop in ("random", "ten") else 1.0
    scale = margin * max(size[0] / height, size[1] / width)
    seen = min(size[0] / scale, height), min(size[1] / scale, width)
    down, across = _crop_place(crop, view, f"{seed}/{view}/{key}")
    top, left = down * (height - seen[0]), across * (width - seen[1])
    return Part(left, top, min(left + seen[1], width), min(top + seen[0], height))


def _crop_place(crop: str, view: int, name: str) -> tuple[float, float]:
    """Where a crop lies between top and bottom, left and right: 0 to 1 of what is left over."""
    if crop == "random":
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
        down, across = (int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in (0, 8))
        return down, across
    if crop == "ten" and view % 5 < 4:
        return float(view % 5 // 2), float(view % 5 % 2)
    return 0.5, 0.5
