"""A study's plot of metrics and its sheets of images."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ops.images import png_bytes
from ops.plots import figure_image
from pipelines.studies.runs import Run
from pipelines.studies.study import Column, ImageRow, Study
from pipelines.studies.summary import Cell, shown_columns, summarise

PANELS, PANEL, VARIANT = 3, 3.2, 0.7  # panels side by side; inches of one, of a variant in one
CELL, GAP, MARGIN = 128, 4, 24  # of an image sheet, in pixels


def metrics_plot(study: Study, runs: Sequence[Run]) -> bytes:
    """A PNG with a panel for each plotted column: a point for each seed, a bar at their mean."""
    columns = [column for column in shown_columns(study, runs) if column.plotted]
    across = max(1, min(PANELS, len(columns)))
    down = max(1, -(-len(columns) // across))
    width = max(PANEL, VARIANT * len(study.variants))
    figure = Figure(figsize=(width * across, 2.6 * down), dpi=100, layout="constrained")
    cells = summarise(study, runs)
    for number, column in enumerate(columns, 1):
        axes = figure.add_subplot(down, across, number)
        _draw(axes, column, [cells[variant].get(column.metric) for variant in study.variants])
        axes.set_xticks(range(len(study.variants)), study.variants, fontsize=8)
        axes.set_xlim(-0.5, len(study.variants) - 0.5)
    return png_bytes(figure_image(figure))


def _draw(axes: Axes, column: Column, cells: Sequence[Cell | None]) -> None:
    for position, cell in enumerate(cells):
        if cell is not None:
            axes.hlines(cell.mean, position - 0.25, position + 0.25, color="C0", linewidth=2)
            axes.plot([position] * len(cell.values), cell.values, "o", color="C1", markersize=4)
    axes.set_title(column.heading, fontsize=9, parse_math=False)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", alpha=0.3)


def image_sheet(rows: Sequence[ImageRow]) -> bytes:
    """A PNG of the rows below each other, reduced to 256 colours to keep it small.

    Images of CELL x CELL pixels are shown unscaled, others are scaled to that.
    """
    across = max(len(row.images) for row in rows)
    sheet = Image.new("RGB", (MARGIN + across * (CELL + GAP), len(rows) * (CELL + GAP)), "white")
    for down, row in enumerate(rows):
        top = down * (CELL + GAP)
        sheet.paste(_vertical_text(row.heading), (0, top))
        for number, image in enumerate(row.images):
            shown = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(shown, (MARGIN + number * (CELL + GAP), top))
    buffer = io.BytesIO()
    sheet.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _vertical_text(text: str) -> Image.Image:
    line = Image.new("RGB", (CELL, MARGIN), "white")
    ImageDraw.Draw(line).text((CELL / 2, MARGIN / 2), text, fill="black", anchor="mm")
    return line.transpose(Image.Transpose.ROTATE_90)
