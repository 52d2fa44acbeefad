"""`low_res`: the image itself at low resolution, by the image tokenizer's codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from PIL import Image
from torch import Tensor

from ops.images import ImageArray, resize_and_crop
from ops.low_resolution import enlarged, shrunk_size
from pipelines.conditioning.conditioning import CONDITIONINGS, FileConditioning, track_provenance
from pipelines.inputs import Entry, read_entry
from pipelines.store import CodeStore
from pipelines.tracks import LowResTrack, Track
from prior.conditions import Condition, LowResolution


@CONDITIONINGS.register("low_res")
class LowResolutionConditioning(FileConditioning[LowResolution, Entry | ImageArray]):
    """Images of any size, shrunk as those that the prior was trained on, and enlarged again."""

    name: ClassVar[str] = "low_res"
    track: ClassVar[type[Track] | None] = LowResTrack

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        made = track_provenance(stores, cls.name)
        fields = {name: made[name] for name in ("codebook_size", "fingerprint", "ratio")}
        return LowResolution(**fields)

    def encode(self, item: Entry | ImageArray) -> dict[str, Tensor]:
        return {self.name: self.codes(self.preview(item))}

    def preview(self, item: Entry | ImageArray) -> ImageArray:
        """The image that is encoded."""
        assert self.part.ratio is not None  # build() recorded the store's
        small = shrunk_size(self.size, self.part.ratio)
        if isinstance(item, Entry):
            item = self.tokenizer.modality.decode(read_entry(item)())
        # As in training where it shrinks; a smaller image would get blocks by area averages.
        shrinks = item.shape[0] >= small[0] and item.shape[1] >= small[1]
        resampling = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
        return enlarged(resize_and_crop(item, small, resampling=resampling), self.size)
