"""Images and plots of a report as data URIs, which the HTML file contains."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.images import ImageArray, png_bytes
from ops.paths import AnyPath, open_binary
from ops.plots import figure_image, plot_text
from pipelines.training import draw_usage

# Transparent plots in these colours are legible on a white page and on a dark one.
INK, GRID, LINE = "#7d8590", "#7d859040", "#3b82f6"
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    """`data` as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def image_uri(image: ImageArray) -> str:
    """An image, uint8 (H, W, 3) or (H, W, 4), as a PNG in a data URI."""
    return data_uri(png_bytes(image))


def file_uri(path: AnyPath) -> str:
    """A PNG or JPEG file, unchanged, in a data URI; raises NotRegularError for a link."""
    with open_binary(path, follow=False) as file:
        return data_uri(file.read(), TYPES[path.suffix.lower()])


def usage_plot(counts: np.ndarray) -> str:
    """How often each code occurs, most frequent first, from counts (K,)."""
    figure, axes = _axes()
    draw_usage(axes, counts, LINE)
    return image_uri(figure_image(figure, alpha=True))


def curve_plot(steps: Sequence[float], values: Sequence[float], name: str) -> str:
    """One metric of a training run over its steps; values that are not finite leave a gap."""
    figure, axes = _axes()
    finite = [value if math.isfinite(value) else math.nan for value in values]
    axes.plot(steps, finite, color=LINE, marker="." if len(finite) < 20 else None)
    axes.set(xlabel="step")
    axes.set_ylabel(plot_text(name), parse_math=False)
    return image_uri(figure_image(figure, alpha=True))


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.0), dpi=160, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.grid(color=GRID, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes
