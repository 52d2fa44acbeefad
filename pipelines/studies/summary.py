"""A study's metrics over its seeds: means, standard deviations and the Markdown table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.studies.runs import Run
from pipelines.studies.study import Column, Study


class Cell(NamedTuple):
    """One metric of one variant."""

    values: list[float]  # one for each seed
    mean: float
    spread: float  # standard deviation between seeds (n - 1); nan for one seed


def shown_columns(study: Study, runs: Sequence[Run]) -> list[Column]:
    """The study's columns whose metric some run has."""
    return [c for c in study.columns if any(c.metric in run.metrics for run in runs)]


def summarise(study: Study, runs: Sequence[Run]) -> dict[str, dict[str, Cell]]:
    """Cells by variant and metric; values of a relative column are multiples already."""
    cells: dict[str, dict[str, Cell]] = {variant: {} for variant in study.variants}
    for column in shown_columns(study, runs):
        first = _values(runs, study.variants[0], column.metric)
        unit = statistics.mean(first) if column.relative and first else 1.0
        for variant in study.variants:
            values = [value / unit for value in _values(runs, variant, column.metric)]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else math.nan
                cells[variant][column.metric] = Cell(values, statistics.mean(values), spread)
    return cells


def _values(runs: Sequence[Run], variant: str, metric: str) -> list[float]:
    return [r.metrics[metric] for r in runs if r.variant == variant and metric in r.metrics]


def table(study: Study, runs: Sequence[Run]) -> str:
    """A Markdown table: a row for each variant, mean ± standard deviation over the seeds."""
    columns, cells = shown_columns(study, runs), summarise(study, runs)
    lines = [["variant", *(column.heading for column in columns)], ["---"] * (len(columns) + 1)]
    for variant in study.variants:
        row = cells[variant]
        lines.append([variant, *(_text(row.get(c.metric), c.digits) for c in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(cell: Cell | None, digits: int) -> str:
    """Mean ± spread; only the mean if all seeds agree or there is one."""
    if cell is None:
        return "–"
    mean = f"{cell.mean:,.{digits}f}"
    return f"{mean} ± {cell.spread:,.{digits}f}" if cell.spread > 0 else mean
