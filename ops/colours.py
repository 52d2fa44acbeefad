"""Colour maps for label maps and for scalar fields."""

from __future__ import annotations

import colorsys
import functools

import numpy as np

from ops.images import ImageArray, Raster

GOLDEN = 0.618033988749895  # hue step, in turns: neighbouring labels get distant hues
# From dark to bright in even steps of lightness.
STOPS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def class_colours(labels: Raster) -> ImageArray:
    """Colours, uint8 (..., 3), of labels (...); negative labels, which are void, are black."""
    palette = _palette(int(labels.max(initial=0)) + 1)
    colours: ImageArray = palette[np.maximum(labels, -1) + 1]
    return colours


@functools.lru_cache(maxsize=8)
def _palette(count: int) -> ImageArray:
    """Black, then the colours of labels 0 .. count-1; a label's colour does not depend on count."""
    colours = [
        colorsys.hsv_to_rgb(label * GOLDEN % 1, (0.5, 0.75, 1.0)[label % 3], 1 - label % 4 / 8)
        for label in range(count)
    ]
    return (np.array([(0.0, 0.0, 0.0), *colours]) * 255).round().astype(np.uint8)


def scalar_colours(values: Raster) -> ImageArray:
    """Colours, uint8 (..., 3), of values (...): 0 is black, 1 pale yellow; others are clamped."""
    positions = np.linspace(0, 1, len(STOPS))
    channels = [np.interp(values, positions, STOPS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
