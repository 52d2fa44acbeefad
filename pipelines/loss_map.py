"""Where in a window a prior finds the codes hard to foretell, as a picture."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ops.images import ImageArray


def loss_map_picture(nats: np.ndarray) -> ImageArray:
    """A heat picture, uint8 (H, W, 3), of the mean nats at each place (h, w), with its scale.

    A place that is nan stays white.
    """
    # A Figure of our own, drawn by Agg: pyplot would keep each one for the whole process.
    figure = Figure(figsize=(4.8, 4.0), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(nats, cmap="viridis", interpolation="nearest")
    axes.set(title=f"nats a code, mean {np.nanmean(nats):.3f}", xlabel="column", ylabel="row")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(drawn, ax=axes)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
