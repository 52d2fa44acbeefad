"""`inpaint`: images with transparent holes, whose codes are known but for the holes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ops.images import ImageArray, ImageError
from ops.masked_images import MaskedImage, decode_masked, known_cells, resize_masked
from pipelines.conditioning.conditioning import CONDITIONINGS, FileConditioning
from pipelines.inputs import Entry, read_entry
from pipelines.store import CodeStore
from prior.conditions import Condition, Inpaint

WHITE = 255


@CONDITIONINGS.register("inpaint")
class InpaintConditioning(FileConditioning[Inpaint, Entry | MaskedImage]):
    """The codes around the holes are read by the prior, and stay in the sample."""

    name: ClassVar[str] = "inpaint"
    known_codes: ClassVar[bool] = True

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        return Inpaint(codebook_size=stores[0].provenance["image"]["codebook_size"])

    def encode(self, item: Entry | MaskedImage) -> dict[str, Tensor]:
        masked = self._masked(item)
        factor = self.tokenizer.config.downsample_factor
        known = torch.from_numpy(known_cells(masked.known, factor))
        if known.all():
            raise ImageError("whole", "nothing in it is transparent, so nothing is to be sampled")
        return {"codes": self.codes(masked.image).where(known, -1)}

    def preview(self, item: Entry | MaskedImage) -> ImageArray:
        """The image with white holes."""
        masked = self._masked(item)
        return np.where(masked.known[..., None], masked.image, np.uint8(WHITE))

    def _masked(self, item: Entry | MaskedImage) -> MaskedImage:
        """The image, its middle cropped to the canvas's aspect."""
        masked = decode_masked(read_entry(item)()) if isinstance(item, Entry) else item
        return resize_masked(masked, self.size)
