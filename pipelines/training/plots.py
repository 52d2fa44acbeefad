"""Plots of a training run: loss per cell, codebook usage, curves of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
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
    # At fixed places: to measure all texts for a layout takes as long as to draw.
    figure = Figure(figsize=(4.8, 4.0), dpi=100)
    axes = figure.add_axes((0.12, 0.12, 0.68, 0.76))
    scale = figure.add_axes((0.84, 0.12, 0.04, 0.76))
    drawn = axes.imshow(nll, cmap="viridis", interpolation="nearest")
    axes.set(title=f"nats per code, mean {np.nanmean(nll):.3f}", xlabel="column", ylabel="row")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(drawn, cax=scale)
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
    for number, name in enumerate(names):
        points = np.array([(line["step"], line[name]) for line in lines if name in line], float)
        row, column = divmod(number, COLUMNS)
        corner = (column + 0.2) / COLUMNS, 1 - (row + 0.83) / rows
        _draw_curve(figure, corner, (0.75 / COLUMNS, 0.65 / rows), name, points)
    return figure_image(figure)


def _draw_curve(
    figure: Figure,
    corner: tuple[float, float],
    size: tuple[float, float],
    name: str,
    points: np.ndarray,
) -> None:
    """Draw the curve through (step, value) `points` (n, 2), with the first and the last step and
    the lowest and the highest value, in a box given by its lower left corner and its size.

    Without axes: theirs take ten times as long as the curves, at every evaluation of a run.
    """
    left, bottom = corner
    figure.add_artist(Rectangle(corner, *size, fill=False, linewidth=0.8))
    middle, above = left + size[0] / 2, bottom + 1.04 * size[1]
    figure.text(middle, above, plot_text(name), fontsize=9, parse_math=False, ha="center")
    finite = np.isfinite(points).all(1)
    if not finite.any():
        return
    points = np.where(finite[:, None], points, np.nan)
    lowest, highest = np.nanmin(points, 0), np.nanmax(points, 0)
    margin = np.where(highest > lowest, 0.05, 0.5)  # a constant is in the middle
    share = (points - lowest) / np.where(highest > lowest, highest - lowest, 1)
    xs, ys = (corner + (margin + (1 - 2 * margin) * share) * size).T
    figure.add_artist(Line2D(xs, ys, color="C0", marker="." if finite.sum() == 1 else None))
    for step, x in {lowest[0]: np.nanmin(xs), highest[0]: np.nanmax(xs)}.items():
        figure.text(x, bottom - 0.04 * size[1], f"{step:.0f}", fontsize=7, ha="center", va="top")
    for value, y in {lowest[1]: np.nanmin(ys), highest[1]: np.nanmax(ys)}.items():
        figure.text(left - 0.004, y, f"{value:.4g}", fontsize=7, ha="right", va="center")
