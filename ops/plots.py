"""Matplotlib figures as images, drawn by Agg without pyplot, which never frees a figure."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ops.images import ImageArray
from ops.text import printable


def figure_image(figure: Figure, *, alpha: bool = False) -> ImageArray:
    """What is drawn on `figure`, uint8 (H, W, 3), or (H, W, 4) with its alpha channel."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    channels = 4 if alpha else 3
    image: ImageArray = np.asarray(canvas.buffer_rgba())[..., :channels].copy()
    return image


def plot_text(name: str) -> str:
    """A name from a file as one short line, for texts with parse_math=False: `$` is no formula."""
    return printable(name, 60)
