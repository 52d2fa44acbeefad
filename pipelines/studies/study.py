"""The definition of a study: variants, how one is measured, and how metrics are reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from ops.config import UserError
from ops.images import ImageArray
from pipelines.studies.context import StudyContext


class StudyError(UserError):
    """A study that cannot be run as requested."""


class Column(NamedTuple):
    """A metric as a column of the table and a panel of the plot."""

    metric: str  # its name in the result of Study.measure; columns that no run has are left out
    heading: str  # with its unit
    digits: int = 2  # decimals
    plotted: bool = True
    relative: bool = False  # reported as a multiple of the first variant's mean


class ImageRow(NamedTuple):
    """Images side by side, uint8 (H, W, 3), with a heading."""

    heading: str
    images: list[ImageArray]


class Study(ABC):
    """A comparison of variants; each (variant, seed) is a separate run.

    Training and encoding go through the context, which calls the public commands, so that a stopped
    run resumes where it was.
    """

    title: str
    paper: str
    """the paper's result with its section, and how this study differs"""
    variants: tuple[str, ...]
    columns: tuple[Column, ...]

    @abstractmethod
    def settings(self, context: StudyContext) -> dict[str, Any]:
        """What decides the metrics besides photographs and seeds, as JSON; shown in the report."""

    def prepare(self, context: StudyContext) -> None:  # noqa: B027 - optional
        """Make what all runs share; called before missing runs, must keep what exists."""

    @abstractmethod
    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        """Train and measure one run; its metrics by name."""

    def images(self, context: StudyContext, seed: int) -> list[ImageRow]:
        """Rows of images from the runs of one seed; empty if there are none to show."""
        return []
