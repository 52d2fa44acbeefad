"""A study's figures over its seeds: means, spreads and the Markdown table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.studies.runs import Run
from pipelines.studies.study import Column, Study


class Cell(NamedTuple):
    """One figure of one variant."""

    values: list[float]  # one a seed
    mean: float
    spread: float  # standard deviation between seeds (n - 1); nan for one seed


def shown_columns(study: Study, runs: Sequence[Run]) -> list[Column]:
    """The study's columns that some run has a figure for."""
    return [c for c in study.columns if any(c.figure in run.metrics for run in runs)]


def summarise(study: Study, runs: Sequence[Run]) -> dict[str, dict[str, Cell]]:
    """Cells by variant and figure; a relative column's values are multiples already."""
    cells: dict[str, dict[str, Cell]] = {variant: {} for variant in study.variants}
    for column in shown_columns(study, runs):
        first = _values(runs, study.variants[0], column.figure)
        unit = statistics.mean(first) if column.relative and first else 1.0
        for variant in study.variants:
            values = [value / unit for value in _values(runs, variant, column.figure)]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else math.nan
                cells[variant][column.figure] = Cell(values, statistics.mean(values), spread)
    return cells


def _values(runs: Sequence[Run], variant: str, figure: str) -> list[float]:
    return [r.metrics[figure] for r in runs if r.variant == variant and figure in r.metrics]


def table(study: Study, runs: Sequence[Run]) -> str:
    """A Markdown table: a line each variant, means and spreads over the seeds."""
    columns, cells = shown_columns(study, runs), summarise(study, runs)
    lines = [["variant", *(column.heading for column in columns)], ["---"] * (len(columns) + 1)]
    for variant in study.variants:
        found = cells[variant]
        lines.append([variant, *(_text(found.get(c.figure), c.digits) for c in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(cell: Cell | None, digits: int) -> str:
    """Mean ± spread; no spread where no seed differs from another."""
    if cell is None:
        return "–"
    mean = f"{cell.mean:,.{digits}f}"
    return f"{mean} ± {cell.spread:,.{digits}f}" if cell.spread > 0 else mean
