"""What a condition is to the pipelines, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ops.config import ConfigError, Registry
from ops.images import ImageArray, Raster, resize_and_crop
from pipelines.conditioning.files import ConditionFiles, image_files
from pipelines.inputs import Entry, read_entry
from pipelines.store import CodeStore
from pipelines.tracks import Track
from prior.conditions import Condition
from tokenizer import VQGAN, encode_tiled

Part = TypeVar("Part", bound=Condition | None)  # the prior's condition
Item = TypeVar("Item")  # the input of one sample: an image file, or parsed lines
Size = tuple[int, int]  # height, width in pixels


class Conditioning:
    """One condition, from a code store to a prior's Condition.

    Subclasses are registered under their name; those whose input a user can give as files are
    FileConditioning.
    """

    name: ClassVar[str]
    track: ClassVar[type[Track] | None] = None
    """The kind of track that `encode --track NAME=...` makes of this name."""
    not_by_file: ClassVar[str] = ""
    """What to do instead of `generate --condition NAME=...`, where that is not the way."""

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        """The prior's condition, sized for the stores that it is trained on.

        `label_names` are the classes of all stores. Raises StoreError or ConfigError where the
        stores lack what it reads.
        """
        raise ConfigError(f"No prior is trained with {cls.name!r}, which any prior can be given.")


class FileConditioning(Conditioning, ABC, Generic[Part, Item]):
    """A condition that `generate --condition NAME=PATH` gives, for samples of one canvas.

    `part` is the prior's condition (None where it has none), `tokenizer` the condition's own, or
    the images', `size` the samples' (height, width) in pixels.
    """

    known_codes: ClassVar[bool] = False
    """Whether it gives codes of the sample itself, which stay: encode() returns `codes` (rows,
    columns), -1 where one is to be sampled."""

    def __init__(self, part: Part, tokenizer: VQGAN, size: Size) -> None:
        self.part, self.tokenizer, self.size = part, tokenizer, size

    @classmethod
    def parse(cls, path: Path, part: Part) -> ConditionFiles:
        """What PATH names: by default a file, or a folder of files, of images.

        Raises ConfigError for what cannot be used, InputError where there are no files.
        """
        return image_files(cls.name, path)

    @abstractmethod
    def encode(self, item: Item) -> dict[str, Tensor]:
        """The entries of a batch, without their first axis, that one item makes.

        Raises ImageError for a file that cannot be used.
        """

    @abstractmethod
    def preview(self, item: Item) -> ImageArray:
        """An image, uint8 (height, width, 3), that shows one item."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the codes that cover the canvas."""
        factor = self.tokenizer.config.downsample_factor
        rows, columns = (-(-side // factor) for side in self.size)
        return rows, columns

    def raster(self, item: Entry) -> Raster:
        """The raster in a file, its middle cropped to the canvas's aspect, at the canvas's size."""
        modality, data = self.tokenizer.modality, read_entry(item)()
        return resize_and_crop(modality.decode(data), self.size, resampling=modality.resampling)

    def codes(self, raster: Raster) -> Tensor:
        """Codes (h, w) int64 of a raster (H, W, ...), on the CPU."""
        modality = self.tokenizer.modality
        device = next(self.tokenizer.parameters()).device
        with torch.inference_mode():
            pixels = modality.pixels(modality.samples(np.stack([raster])).to(device))
            return encode_tiled(self.tokenizer, pixels)[0].cpu()


CONDITIONINGS: Registry[type[Conditioning]] = Registry("condition")


def track_provenance(stores: Sequence[CodeStore], track: str) -> dict[str, Any]:
    """How a track was made; raises StoreError where the first store has none of that name."""
    return stores[0].track(track).provenance[track]
