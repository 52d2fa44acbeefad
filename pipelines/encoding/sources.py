"""Row sources: the raster of a planned row (photograph, partner file, low_res)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.config import ConfigError, from_json
from ops.device_jpeg import JpegDecoder
from ops.images import DECODERS, ImageError, Raster, Transform, to_pixels
from ops.low_resolution import degraded
from pipelines.planning import DUPLICATE
from tokenizer import Modality

Row = Mapping[str, Any]  # a line of PLAN_SCHEMA; of further tracks also of IMAGE_COLUMNS
Size = tuple[int, int]  # height, width

#: Columns of the images' index that rows of further tracks have, and their names there.
IMAGE_COLUMNS = {"status": "image_status", "width": "image_width", "height": "image_height"}
#: The etag of a row without a partner file, and of one whose partner is ambiguous.
NO_PARTNER = "no partner"
SEVERAL_PARTNERS = "several partners"
NO_IMAGE = "no image"  # the status of a row whose image has no codes either


class Found(NamedTuple):
    raster: Raster  # (H, W, ...), cropped to the size asked for
    width: int  # of the upright image in the file
    height: int
    note: str | None = None  # on what was not used of the file


class RowSource(ABC):
    """Reads rows of one track as rasters (H, W, ...) and turns those into a tokenizer's pixels.

    `raster_shape` and `raster_dtype` are of one position of a raster.
    """

    raster_shape: tuple[int, ...] = (3,)
    raster_dtype = torch.uint8

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    @abstractmethod
    def check(self, row: Row) -> None:
        """Raise ImageError where the plan has nothing to read for the row."""

    @abstractmethod
    def read(self, data: bytes, row: Row, size: Size) -> Found:
        """The row's raster, decoded from a file's bytes; raises ImageError where that fails."""

    def samples(self, rasters: Tensor) -> Tensor:
        """What of a batch of rasters, on the CPU, is copied to the device."""
        return rasters

    @abstractmethod
    def pixels(self, samples: Tensor) -> Tensor:
        """Pixels (B, channels, H, W) of samples, on the device where those are."""


class Photographs(RowSource):
    """The images themselves: rasters uint8 (H, W, 3); of JPEG by `decoder`, where there is one."""

    def __init__(self, transform: Transform, decoder: JpegDecoder | None = None) -> None:
        super().__init__(transform)
        self._reader = decoder or transform

    def check(self, row: Row) -> None:
        if row["etag"] == DUPLICATE:
            raise ImageError("duplicate key", "another image has the same key")

    def read(self, data: bytes, row: Row, size: Size) -> Found:
        return Found(*self._reader.read(data, size, row["view"], row["key"]))

    def pixels(self, samples: Tensor) -> Tensor:
        if samples.device.type == "cpu":
            return to_pixels(samples.numpy())
        # Here and not on the CPU: uint8 is a quarter of the bytes to copy.
        return samples.permute(0, 3, 1, 2).float() / 127.5 - 1


class LowResolutions(Photographs):
    """The images shrunk by `ratio` and enlarged again: the condition of super-resolution.

    With `artefacts` the small images have noise and JPEG artefacts, chosen by key and view.
    """

    def __init__(
        self,
        transform: Transform,
        ratio: int,
        decoder: JpegDecoder | None = None,
        artefacts: bool = False,
    ) -> None:
        super().__init__(transform, decoder)
        self.ratio, self.artefacts = ratio, artefacts

    def check(self, row: Row) -> None:
        check_image(row)

    def read(self, data: bytes, row: Row, size: Size) -> Found:
        found = super().read(data, row, size)
        artefacts_of = f"{row['view']} {row['key']}" if self.artefacts else None
        return found._replace(raster=degraded(found.raster, self.ratio, artefacts_of))


class Partners(RowSource):
    """Partner files of the images, cropped like them: rasters of a tokenizer's modality."""

    def __init__(self, transform: Transform, modality: Modality) -> None:
        super().__init__(transform)
        self.modality = modality
        self.raster_shape = modality.raster_shape
        self.raster_dtype = torch.from_numpy(np.empty(0, modality.raster_dtype)).dtype

    def check(self, row: Row) -> None:
        check_image(row)
        check_partner(row)

    def read(self, data: bytes, row: Row, size: Size) -> Found:
        raster = self.modality.decode(data)
        height, width = raster.shape[:2]
        image_width, image_height = row["image_width"], row["image_height"]
        # A resized version may be off by a pixel on each side.
        if abs(width * image_height - height * image_width) > image_width + image_height:
            raise ImageError(
                "another aspect",
                f"{width}x{height} pixels, where its image has {image_width}x{image_height}",
            )
        view, key = row["view"], row["key"]
        return Found(
            self.transform.cut(raster, size, view, key, self.modality.resampling), width, height
        )

    def samples(self, rasters: Tensor) -> Tensor:
        return self.modality.samples(rasters.numpy())

    def pixels(self, samples: Tensor) -> Tensor:
        return self.modality.pixels(samples)


def check_image(row: Row) -> None:
    """Raise ImageError where a row's image was not encoded."""
    if row["image_status"] != "ok":
        raise ImageError(NO_IMAGE, f"its image was not encoded: {row['image_status']}")


def check_partner(row: Row) -> None:
    """Raise ImageError where the plan has no partner file, or several, for a row's image."""
    if row["etag"] == NO_PARTNER:
        raise ImageError(NO_PARTNER, "nothing has its name")
    if row["etag"] == SEVERAL_PARTNERS:
        raise ImageError(SEVERAL_PARTNERS, f"ambiguous: {row['uri']}")


def source_of(provenance: Mapping[str, Any], modality: Modality, device: torch.device) -> RowSource:
    """The row source of a track of codes, by its provenance and its tokenizer's modality.

    Raises ConfigError for images that are to be decoded on a GPU where the device is none.
    """
    transform = from_json(Transform, provenance["transform"])
    kind = provenance.get("kind")
    decoder = None
    if transform.decoding == DECODERS["nvjpeg"]["decoding"]:
        if device.type != "cuda":
            raise ConfigError(
                "The store was begun with --decoder nvjpeg, which needs a GPU. Use --device cuda, "
                "or name another --out and --decoder pillow."
            )
        decoder = JpegDecoder(transform, device)
    if kind is None:
        return Photographs(transform, decoder)
    if kind == "low_res":
        artefacts = "artefacts" in provenance
        return LowResolutions(transform, provenance["ratio"], decoder, artefacts)
    return Partners(transform, modality)
