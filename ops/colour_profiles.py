"""Embedded ICC colour profiles: pixels to sRGB by LittleCMS.

The intent is relative colorimetric with black point compensation. A profile that changes no colour
by more than one level in 255, like the many versions of sRGB, is not applied.
"""

from __future__ import annotations

import functools
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from ops.image_metadata import MAX_PROFILE

SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}  # modes, as the header of a profile says
PROBE_LEVELS = 17  # of each component, to see what a profile changes
CACHED = 64  # transforms; images of one source share a few profiles
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
#: LittleCMS's faster form for grey is eight levels off in the shadows of a linear profile.
GREY_FLAGS = FLAGS | ImageCms.Flags.NOOPTIMIZE


class Converted(NamedTuple):
    """An image in sRGB."""

    image: Image.Image  # mode RGB
    note: str | None  # why the profile was not used, if so


class _Conversion(NamedTuple):
    transform: ImageCms.ImageCmsTransform | None  # None: the pixels are taken for sRGB
    note: str | None


def to_srgb(image: Image.Image, profile: bytes) -> Converted:
    """An image of mode L, RGB or CMYK, whose colours `profile` defines, in sRGB.

    Where the profile is broken or for other pixels, they are taken for sRGB, and the note says so.
    """
    conversion = _conversion(profile, image.mode)
    if conversion.transform is None:
        return Converted(image if image.mode == "RGB" else image.convert("RGB"), conversion.note)
    converted = ImageCms.applyTransform(image, conversion.transform)
    assert converted is not None  # it would be if done in place
    return Converted(converted, None)


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """An image of mode LAB (CIE, D50) in sRGB."""
    converted = ImageCms.applyTransform(image, _lab_transform())
    assert converted is not None
    return converted


@functools.lru_cache(maxsize=CACHED)
def _conversion(profile: bytes, mode: str) -> _Conversion:
    if not profile or len(profile) > MAX_PROFILE:
        return _Conversion(None, "its colour profile is broken or too large: read as sRGB")
    if profile[16:20] != SPACES[mode]:
        space = profile[16:20].decode("latin-1").strip()
        return _Conversion(
            None, f"its colour profile is for {space!a} and not for {mode}: read as sRGB"
        )
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            *(mode, "RGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            GREY_FLAGS if mode == "L" else FLAGS,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return _Conversion(None, f"its colour profile is broken ({error}): read as sRGB")
    return _Conversion(transform if _changes(transform, mode) else None, None)


@functools.cache
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB", flags=FLAGS
    )


def _changes(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform changes any probed colour by more than one level."""
    if mode == "CMYK":
        return True
    probe = _probe(mode)
    converted = ImageCms.applyTransform(probe, transform)
    levels = [np.asarray(image, np.int16) for image in (converted, probe.convert("RGB"))]
    return bool(np.abs(levels[0] - levels[1]).max() > 1)


def _probe(mode: str) -> Image.Image:
    """All grey levels, or colours of PROBE_LEVELS levels of each component."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, PROBE_LEVELS).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
    return Image.fromarray(grid.reshape(PROBE_LEVELS, -1, 3))
