"""`coordinates`: each code's place in the whole image, for priors trained on windows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ops.config import ConfigError, Range
from prior.conditions.condition import CONDITIONS, Condition, Shape, Vocabulary, entry_of
from prior.conditions.frames import Entry, WindowView


def moved(place: Tensor, view: WindowView) -> Tensor:
    """The place (B, 4) of a window of the canvas that has this place."""
    return place + torch.tensor([view.window.row, view.window.column, 0, 0])


@CONDITIONS.register("coordinates")
@dataclass(frozen=True, kw_only=True)
class Coordinates(Condition):
    """A token for each code's place in the whole image.

    From `batch["place"]` (B, 4) int64: the window's top row and left column in the whole grid, and
    the whole grid's rows and columns. As published (Esser et al. 2021, code: CoordStage): a map of
    the image's pixels, each its raster number over the number of pixels, is averaged over the f x f
    pixels of a code, and token = round(K * mean). With K = codebook_size and f =
    downsample_factor, that is the rounded K * c:

        c(i, j) = ((f*i + (f-1)/2) * f*columns + f*j + (f-1)/2) / (f*f * rows * columns)

    In large images the last of them would round to K, for which theirs has no token: it is K-1.
    """

    codebook_size: Vocabulary
    downsample_factor: Annotated[int, Range(least=1, most=2**16)]

    name: ClassVar[str] = "coordinates"
    entries: ClassVar[Mapping[str, Entry]] = {"place": Entry(1, moved)}
    is_grid: ClassVar[bool] = True

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch has no place, or one outside of its grid."""
        place = entry_of(
            batch, "place", (batch_size, 4), "The condition 'coordinates' needs 'place'."
        ).to(torch.float64)
        height, width = shape
        top, left, rows, columns = (part[:, None, None] for part in place.T)
        f, middle = self.downsample_factor, (self.downsample_factor - 1) / 2
        down = f * (top + torch.arange(height)[:, None]) + middle  # in pixels
        right = f * (left + torch.arange(width)) + middle
        inside = (top >= 0) & (left >= 0) & (top + height <= rows) & (left + width <= columns)
        if not inside.all():
            raise ConfigError(
                f"'place' must be the top row and left column of a window, {height}x{width} "
                f"codes, and the rows and columns of a grid that holds it; found "
                f"{place[~inside.flatten()][0].int().tolist()}."
            )
        shares = (down * f * columns + right) / (f * f * rows * columns)
        codes: Tensor = (self.codebook_size * shares).round().to(torch.int64)
        return codes.clamp(max=self.codebook_size - 1)

    def implied(
        self, entries: Mapping[str, Tensor], count: int, canvas: Shape
    ) -> Mapping[str, Tensor]:
        """The canvas is the whole grid."""
        return {"place": torch.tensor([0, 0, *canvas]).expand(count, -1)}
