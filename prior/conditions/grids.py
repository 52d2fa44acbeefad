"""What is told by a token for each code, in the code's place: grids of another tokenizer's codes,
the known part of the codes themselves, and where in the whole picture a window lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ops.config import ConfigError
from prior.conditions.contract import CONDITIONS, Shape, check_range, entry


@dataclass(frozen=True, kw_only=True)
class CodeGrid:
    """`batch[name]` (B, h, w): codes of a tokenizer that has `codebook_size`; -1 says nothing.

    `fingerprint` may say which tokenizer that is.
    """

    codebook_size: int
    fingerprint: str = ""

    name: ClassVar[str]
    entries: ClassVar[tuple[str, ...]]
    is_grid: ClassVar[bool] = True
    in_frame: ClassVar[bool] = False
    length: ClassVar[int] = 0
    encode_with: ClassVar[str] = "PATH"

    def __post_init__(self) -> None:
        if self.codebook_size < 1:
            raise ConfigError(f"codebook_size must be at least 1, found {self.codebook_size}.")

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + 1

    @property
    def null_token(self) -> int:
        return self.codebook_size

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch has no such track, or a code is out of range."""
        codes = entry(
            batch,
            self.name,
            (batch_size, *shape),
            f"The condition '{self.name}' needs the track of that name; encode with --track "
            f"{self.name}={self.encode_with}.",
        ).to(torch.int64)
        check_range(codes, -1, self.codebook_size - 1, f"Codes of '{self.name}'")
        return torch.where(codes < 0, self.codebook_size, codes)


@CONDITIONS.register("segmentation")
@dataclass(frozen=True, kw_only=True)
class Segmentation(CodeGrid):
    """A label map, by the codes of a tokenizer for label maps (Esser et al. 2021, section 4.2)."""

    name: ClassVar[str] = "segmentation"
    entries: ClassVar[tuple[str, ...]] = ("segmentation",)


@CONDITIONS.register("depth")
@dataclass(frozen=True, kw_only=True)
class Depth(CodeGrid):
    """A depth map, by the codes of a tokenizer for depth maps."""

    name: ClassVar[str] = "depth"
    entries: ClassVar[tuple[str, ...]] = ("depth",)


@CONDITIONS.register("low_res")
@dataclass(frozen=True, kw_only=True)
class LowResolution(CodeGrid):
    """The picture shrunk and enlarged again, by the image tokenizer's codes: super-resolution.

    `ratio` may say by how much it was shrunk.
    """

    ratio: int | None = None

    name: ClassVar[str] = "low_res"
    entries: ClassVar[tuple[str, ...]] = ("low_res",)
    encode_with: ClassVar[str] = "RATIO"


@CONDITIONS.register("inpaint")
@dataclass(frozen=True, kw_only=True)
class Inpaint:
    """`batch["codes"]` (B, h, w) where `batch["known"]` (B, h, w) is true, else a mask token.

    Nothing told is nothing known. Training draws what is known: see prior.conditions.masks.
    """

    codebook_size: int

    name: ClassVar[str] = "inpaint"
    entries: ClassVar[tuple[str, ...]] = ("codes", "known")
    is_grid: ClassVar[bool] = True
    in_frame: ClassVar[bool] = False
    length: ClassVar[int] = 0

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + 1

    @property
    def null_token(self) -> int:
        return self.codebook_size

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch lacks codes or mask, or a known code is none."""
        grid = (batch_size, *shape)
        codes = entry(batch, "codes", grid, "The condition 'inpaint' needs codes.")
        known = entry(
            batch,
            "known",
            grid,
            "The condition 'inpaint' needs 'known': true where a code is to be told.",
        ).to(torch.bool)
        check_range(codes[known], 0, self.codebook_size - 1, "Known codes")
        return torch.where(known, codes.to(torch.int64), self.codebook_size)


@CONDITIONS.register("coordinates")
@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Where in the whole picture each code lies, for priors trained on windows of it.

    From `batch["place"]` (B, 4): the window's top row and left column in the whole grid, and the
    whole grid's rows and columns. As published (Esser et al. 2021, code: CoordStage): a map of the
    picture's pixels, each its raster number over the number of pixels, is averaged over the f x f
    pixels of a code, and token = round(K * mean). With K = codebook_size and f =
    downsample_factor, that is the rounded K * c:

        c(i, j) = ((f*i + (f-1)/2) * f*columns + f*j + (f-1)/2) / (f*f * rows * columns)

    In large pictures the last of them would round to K, of which theirs has no token: it is K-1.
    """

    codebook_size: int
    downsample_factor: int

    name: ClassVar[str] = "coordinates"
    entries: ClassVar[tuple[str, ...]] = ("place",)
    is_grid: ClassVar[bool] = True
    in_frame: ClassVar[bool] = False
    length: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for name in ("codebook_size", "downsample_factor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}.")

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + 1

    @property
    def null_token(self) -> int:
        return self.codebook_size

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        """Raises ConfigError when the batch does not say where its windows lie."""
        place = entry(
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
        codes = (self.codebook_size * shares).round().to(torch.int64)
        return codes.clamp(max=self.codebook_size - 1)
