"""A study's photographs as pixels: held out, trained on, and to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pipelines.demo_stages import gather_photographs
from pipelines.inputs import Entry
from pipelines.studies.context import HELD_OUT, IMAGE_SIZE, StudyContext
from pipelines.studies.study import StudyError
from pipelines.training import PHOTOGRAPHS, evaluation_samples, list_data

SHOWN = ("astronaut.png", "chelsea.png", "coffee.png", "china.jpg")  # of the demo's photographs
MAX_SHOWN = 4


def held_out_photographs(context: StudyContext) -> Tensor:
    """Centre squares (N, 3, S, S) of the held-out photographs.

    Raises StudyError if there are none, as do the other functions here.
    """
    return _squares(context.data, list_data(context.data, None, HELD_OUT).measured)


def training_photographs(context: StudyContext) -> Tensor:
    """Centre squares (N, 3, S, S) of the photographs trained on."""
    return _squares(context.data, list_data(context.data, None, HELD_OUT).learned)


def shown_photographs(context: StudyContext) -> Tensor:
    """Centre squares (N, 3, S, S) of the photographs to show."""
    folder = context.shown or context.out / "shown"
    if context.shown is None:
        gather_photographs(folder)
    entries = list_data(folder, None, 1.0).measured
    known = [entry for entry in entries if entry.key in SHOWN]
    return _squares(folder, (entries if context.shown else known)[:MAX_SHOWN])


def _squares(folder: Path, entries: Sequence[Entry]) -> Tensor:
    bad: list[str] = []
    squares = evaluation_samples(PHOTOGRAPHS, entries, IMAGE_SIZE, lambda key, _: bad.append(key))
    if not len(squares):
        raise StudyError(
            f"{folder}: of {len(entries)} photographs to measure or show, {len(bad)} could not be "
            "read, and none is left. Add more photographs."
        )
    return squares
