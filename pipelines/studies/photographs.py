"""The photographs of a study as pixels: those held out, those trained on, those to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pipelines.demo import gather_photographs
from pipelines.inputs import Entry
from pipelines.studies.context import HELD_OUT, IMAGE_SIZE, StudyContext
from pipelines.studies.study import StudyError
from pipelines.training import PHOTOGRAPHS, evaluation_samples, list_data

SHOWN = ("astronaut.png", "chelsea.png", "coffee.png", "china.jpg")  # of the demo's photographs
MOST_SHOWN = 4


def held_out_photographs(context: StudyContext) -> Tensor:
    """Middle squares (N, 3, S, S) of the photographs that never train.

    Raises StudyError where there is none, as the others here.
    """
    return _squares(context.data, list_data(context.data, None, HELD_OUT).measured)


def learned_photographs(context: StudyContext) -> Tensor:
    """Middle squares (N, 3, S, S) of the photographs that train."""
    return _squares(context.data, list_data(context.data, None, HELD_OUT).learned)


def shown_photographs(context: StudyContext) -> Tensor:
    """Middle squares (N, 3, S, S) of the photographs to show."""
    folder = context.shown or context.out / "shown"
    if context.shown is None:
        gather_photographs(folder)
    entries = list_data(folder, None, 1.0).measured
    known = [entry for entry in entries if entry.key in SHOWN]
    return _squares(folder, (entries if context.shown else known)[:MOST_SHOWN])


def _squares(folder: Path, entries: Sequence[Entry]) -> Tensor:
    bad: list[str] = []
    squares = evaluation_samples(PHOTOGRAPHS, entries, IMAGE_SIZE, lambda key, _: bad.append(key))
    if not len(squares):
        raise StudyError(
            f"{folder}: of {len(entries)} photographs to measure on or to show, {len(bad)} could "
            "not be read, and none is left. Are there more?"
        )
    return squares
