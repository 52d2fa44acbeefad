"""`half`: the upper half of an image, from which any prior samples the lower half."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ops.images import ImageArray, ImageError
from pipelines.conditioning.conditioning import CONDITIONINGS, FileConditioning
from pipelines.inputs import Entry

WHITE = 255


@CONDITIONINGS.register("half")
class HalfConditioning(FileConditioning[None, Entry]):
    """Known codes that the prior reads as codes, not as a condition: it needs no training."""

    name: ClassVar[str] = "half"
    known_codes: ClassVar[bool] = True

    @property
    def height(self) -> int:
        """Rows of pixels in the upper half, which is whole codes."""
        return self.grid[0] // 2 * self.tokenizer.config.downsample_factor

    def encode(self, item: Entry) -> dict[str, Tensor]:
        """Codes of the upper half, which no pixel below influences, and -1 below."""
        rows = self.grid[0]
        if rows < 2:
            raise ImageError("small", "one row of codes has no upper half: raise --size")
        codes = torch.full(self.grid, -1)
        codes[: rows // 2] = self.codes(self.raster(item)[: self.height])
        return {"codes": codes}

    def preview(self, item: Entry) -> ImageArray:
        """The image, white below its upper half."""
        image = self.raster(item).copy()
        image[self.height :] = WHITE
        return image
