"""What a study is: variants measured under several seeds, and how its figures are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from ops.config import UserError
from ops.images import ImageArray
from pipelines.studies.context import StudyContext


class StudyError(UserError):
    """A study that cannot be done as asked."""


class Column(NamedTuple):
    """A figure as a column of the table, and as a panel of the plot."""

    figure: str  # its name in what Study.measure returns; left out where no run has it
    heading: str  # with its unit
    digits: int = 2  # behind the point
    plotted: bool = True
    relative: bool = False  # told as a multiple of the first variant's mean


class PictureRow(NamedTuple):
    """Pictures side by side, uint8 (H, W, 3), and what is written beside them."""

    heading: str
    pictures: list[ImageArray]


class Study(ABC):
    """One question put to some variants; each (variant, seed) is a run by itself.

    Everything in it goes through `bench`, which calls the public commands, so that a run that was
    stopped goes on where it was.
    """

    title: str
    paper: str
    """what the paper found, and where it says so"""
    variants: tuple[str, ...]
    columns: tuple[Column, ...]

    @abstractmethod
    def settings(self, context: StudyContext) -> dict[str, Any]:
        """What decides the figures besides photographs and seeds, as JSON; told in the report."""

    def prepare(self, context: StudyContext) -> None:  # noqa: B027 - many studies share nothing
        """Make what all runs share. Called in each sitting; what is there already stays."""

    @abstractmethod
    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        """Train and measure one run; its figures by name."""

    def pictures(self, context: StudyContext, seed: int) -> list[PictureRow]:
        """Rows to look at, from the runs of one seed; none where there is nothing to see."""
        return []
