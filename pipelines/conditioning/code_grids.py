"""`segmentation`, `depth`: grids of codes by a tokenizer of the condition's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from ops.images import ImageArray
from pipelines.conditioning.conditioning import CONDITIONINGS, FileConditioning, track_provenance
from pipelines.inputs import Entry
from pipelines.store import CodeStore
from pipelines.tracks import OwnTokenizerTrack, Track
from prior.conditions import CodeGrid, Condition, Depth, Segmentation


class CodeGridConditioning(FileConditioning[CodeGrid, Entry]):
    """Files of one modality, such as label maps: a code for each place."""

    track: ClassVar[type[Track] | None] = OwnTokenizerTrack
    condition: ClassVar[type[CodeGrid]]

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        made = track_provenance(stores, cls.name)
        return cls.condition(codebook_size=made["codebook_size"], fingerprint=made["fingerprint"])

    def encode(self, item: Entry) -> dict[str, Tensor]:
        return {self.name: self.codes(self.raster(item))}

    def preview(self, item: Entry) -> ImageArray:
        modality = self.tokenizer.modality
        samples = modality.samples(np.stack([self.raster(item)]))
        return np.asarray(modality.images(samples)[0])


@CONDITIONINGS.register("segmentation")
class SegmentationConditioning(CodeGridConditioning):
    name: ClassVar[str] = "segmentation"
    condition: ClassVar[type[CodeGrid]] = Segmentation


@CONDITIONINGS.register("depth")
class DepthConditioning(CodeGridConditioning):
    name: ClassVar[str] = "depth"
    condition: ClassVar[type[CodeGrid]] = Depth
