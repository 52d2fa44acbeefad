"""Plots of a training run: loss per cell, codebook usage, curves of its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ops.images import ImageArray
from ops.plots import figure_image, plot_text

COLUMNS = 3  # of curves
NO_CURVES = ("step", "learning_rate")
RATES = "_per_second"  # metrics with this suffix have no curve either


def plot_loss_map(nll: np.ndarray) -> ImageArray:
    """A heat map, uint8 (H, W, 3), of the mean nats at each cell (h, w), with its scale.

    Cells that are nan stay white.
    """
    figure = Figure(figsize=(4.8, 4.0), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(nll, cmap="viridis", interpolation="nearest")
    axes.set(title=f"nats per code, mean {np.nanmean(nll):.3f}", xlabel="column", ylabel="row")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(drawn, ax=axes)
    return figure_image(figure)


def plot_usage(counts: np.ndarray) -> ImageArray:
    """Plot, uint8 (H, W, 3), of how often each code occurred, by rank, from counts (K,)."""
    figure = Figure(figsize=(4.8, 3.0), dpi=100)
    axes = figure.add_axes((0.15, 0.17, 0.8, 0.7))
    draw_usage(axes, counts)
    axes.set(title=f"{int((counts > 0).sum()):,} of {len(counts):,} codes occur")
    return figure_image(figure)


def draw_usage(axes: Axes, counts: np.ndarray, colour: str = "C0") -> None:
    """Plot the counts (K,) of codes that occur over their rank, on logarithmic axes."""
    used = np.sort(counts[counts > 0])[::-1]
    axes.plot(np.arange(1, len(used) + 1), used, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="code, by rank", ylabel="times used")


def plot_curves(lines: Sequence[Mapping[str, float]]) -> ImageArray | None:
    """The metrics of a metrics.jsonl over the steps, uint8 (H, W, 3); None where there are none.

    Values that are not finite are left out.
    """
    found = dict.fromkeys(name for line in lines for name in line)
    names = [name for name in found if name not in NO_CURVES and not name.endswith(RATES)]
    if not names:
        return None
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 1.9 * rows), dpi=80)
    figure.subplots_adjust(0.05, 0.12 / rows, 0.99, 1 - 0.15 / rows, wspace=0.2, hspace=0.45)
    for number, name in enumerate(names):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        axes.plot(steps, [value if math.isfinite(value) else math.nan for value in values])
        axes.set_title(plot_text(name), fontsize=9, parse_math=False)
        axes.tick_params(labelsize=7)
    return figure_image(figure)
