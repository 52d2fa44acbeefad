"""Low-resolution images: what super-resolution is conditioned on."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from ops.images import ImageArray

#: What with_artefacts does, as provenance records it.
ARTEFACTS = "half of them: Gaussian noise to 12 of 255; half of them: JPEG of quality 30 to 95"


def degraded(image: ImageArray, ratio: int, artefacts_of: str | None = None) -> ImageArray:
    """The image, uint8 (H, W, 3), shrunk `ratio` times by area averages and enlarged again.

    With `artefacts_of`, any text, the small image has noise and JPEG artefacts that this text
    chooses: a prior trained on such images is robust to those of thumbnails and of other priors.
    """
    height, width = shrunk_size(image.shape[:2], ratio)
    shrunk = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    if artefacts_of is not None:
        shrunk = with_artefacts(shrunk, artefacts_of)
    return enlarged(shrunk, image.shape[:2])


def with_artefacts(image: ImageArray, text: str) -> ImageArray:
    """The image, uint8 (H, W, 3), with noise and JPEG artefacts or without, by the text."""
    seed = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
    random = np.random.Generator(np.random.Philox(int.from_bytes(seed, "little")))
    noisy, compressed = random.random(2) < 0.5
    if noisy:
        noise = random.normal(0.0, random.uniform(0.0, 12.0), image.shape)
        image = (image + noise).round().clip(0, 255).astype(np.uint8)
    if compressed:
        file = io.BytesIO()
        quality = int(random.integers(30, 96))
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        image = np.asarray(Image.open(file))
    return image


def shrunk_size(size: tuple[int, ...], ratio: int) -> tuple[int, int]:
    """`size` (height, width) divided by `ratio`, rounded, at least 1."""
    height, width = (max(1, round(side / ratio)) for side in size)
    return height, width


def enlarged(image: ImageArray, size: tuple[int, ...]) -> ImageArray:
    """The image, uint8 (h, w, 3), resized bicubically to `size` (height, width)."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
