"""What a report shows: pictures and plots, each as a data URI that an HTML file carries inside."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ops.images import ImageArray
from pipelines.training import draw_usage

# Transparent plots drawn in these read on a white page and on a dark one.
INK, GRID, LINE = "#7d8590", "#7d859040", "#3b82f6"
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """`data` as a URI that stands for itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_uri(image: ImageArray) -> str:
    """An image, uint8 (H, W, 3), as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue())


def file_uri(path: Path) -> str:
    """A PNG or JPEG file as it is."""
    return data_uri(path.read_bytes(), TYPES[path.suffix.lower()])


def usage_plot(counts: np.ndarray) -> str:
    """How often each code occurs, most frequent first, from counts (K,)."""
    figure, axes = _axes()
    draw_usage(axes, counts, LINE)
    return _plot_uri(figure)


def curve_plot(steps: Sequence[float], values: Sequence[float], name: str) -> str:
    """One figure of a training run over its steps; values that are not finite leave a gap."""
    figure, axes = _axes()
    finite = [value if math.isfinite(value) else math.nan for value in values]
    axes.plot(steps, finite, color=LINE, marker="." if len(finite) < 20 else None)
    axes.set(xlabel="step", ylabel=name)
    return _plot_uri(figure)


def _axes() -> tuple[Figure, Axes]:
    # A Figure of our own, drawn by Agg: pyplot would keep each one for the whole process.
    figure = Figure(figsize=(4.8, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color=GRID, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _plot_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=True)
    return data_uri(buffer.getvalue())
