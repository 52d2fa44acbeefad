"""What samples of one canvas are told, made of the files that `generate --condition` names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ops.config import ConfigError, Registry
from ops.images import ImageArray, ImageError, Raster, resize_and_crop
from ops.low_resolution import enlarged, shrunk_size
from ops.masked_images import MaskedImage, decode_masked, known_cells, resize_masked
from pipelines.conditioning.inputs import HALF, ConditionFiles
from pipelines.inputs import Box, Entry, Point, Pose, read_entry
from pipelines.training import track_tokenizers
from prior import Conditions, Prior
from prior.conditions import Boxes, Keypoints, LowResolution
from tokenizer import VQGAN, encode_tiled

BOX = Image.Resampling.BOX
KEPT = 16  # files whose codes are kept: samples are told the same ones in turn
KNOWN = (HALF, "inpaint")  # what gives codes of the picture itself


class ConditionEncoder:
    """Tells samples of pictures of `size` (height, width) what `told` names.

    `tokenizers` are those of the conditions that have one of their own, by name.
    """

    def __init__(
        self,
        condition_inputs: Sequence[ConditionFiles],
        conditions: Conditions,
        tokenizer: VQGAN,
        tokenizers: Mapping[str, VQGAN],
        size: tuple[int, int],
    ) -> None:
        self.size, self.tokenizer, self.tokenizers = size, tokenizer, tokenizers
        self.parts = {part.name: part for part in conditions.parts}
        self._items = {each.name: each.items for each in condition_inputs}
        self._made = functools.lru_cache(KEPT)(self._make)

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that are told."""
        return tuple(self._items)

    @property
    def half_height(self) -> int:
        """Rows of pixels in the upper half, which is whole codes."""
        factor = self.tokenizer.config.downsample_factor
        return -(-self.size[0] // factor) // 2 * factor

    @property
    def knows(self) -> bool:
        """Whether parts of the pictures are known."""
        return any(name in self._items for name in KNOWN)

    def condition_inputs(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """What they are told, as PaintOptions.told has it; the same files give the same."""
        found: dict[str, Tensor] = {}
        for name in self._items:
            if name not in KNOWN:
                found |= self._stacked(name, samples)
        forced = self.forced(samples)
        if forced is not None and "inpaint" in self.parts:
            found |= {"codes": forced, "known": forced >= 0}
        return found

    def forced(self, samples: Sequence[int]) -> Tensor | None:
        """Known codes (N, rows, columns) that stay, -1 where one is to be painted; or None."""
        for name in KNOWN:
            if name in self._items:
                return self._stacked(name, samples)[name]
        return None

    def check(self) -> None:
        """Make what everything tells once; raises ConfigError where a file tells nothing."""
        for name, items in self._items.items():
            for number in range(len(items)):
                self._make(name, number)

    def item(self, name: str, sample: int) -> Any:
        """What tells a sample: a file, or what some lines say."""
        return self._items[name][sample % len(self._items[name])]

    def _stacked(self, name: str, samples: Sequence[int]) -> dict[str, Tensor]:
        count = len(self._items[name])
        each = [self._made(name, sample % count) for sample in samples]
        return {key: torch.stack([made[key] for made in each]) for key in each[0]}

    def _make(self, name: str, number: int) -> dict[str, Tensor]:
        item = self._items[name][number]
        try:
            return MAKERS[name](self, name, item)
        except ImageError as error:
            raise ConfigError(f"--condition {name}: {item.key}: {error}") from error

    def tokens(self, tokenizer: VQGAN, raster: Raster) -> Tensor:
        """Codes (h, w) of a raster (H, W, ...)."""
        modality = tokenizer.modality
        device = next(tokenizer.parameters()).device
        with torch.inference_mode():
            pixels = modality.pixels(modality.samples(np.stack([raster])).to(device))
            return encode_tiled(tokenizer, pixels)[0].cpu()

    def raster(self, tokenizer: VQGAN, item: Entry) -> Raster:
        """The raster in a file, its middle cut to the canvas's aspect."""
        modality, data = tokenizer.modality, read_entry(item)()
        return resize_and_crop(modality.decode(data), self.size, resampling=modality.resampling)

    def coarse(self, item: Entry) -> ImageArray:
        """The picture in a file as coarse as those that the prior was trained on."""
        part = self.parts["low_res"]
        assert isinstance(part, LowResolution)
        assert part.ratio is not None  # train_prior recorded the store's
        small = shrunk_size(self.size, part.ratio)
        image = self.tokenizer.modality.decode(read_entry(item)())
        return enlarged(resize_and_crop(image, small, resampling=BOX), self.size)

    def fractions(self, numbers: Sequence[float]) -> list[float]:
        """x, y, x, y ... in pixels of the picture, in fractions of the canvas of whole codes."""
        factor = self.tokenizer.config.downsample_factor
        height, width = (-(-side // factor) * factor for side in self.size)
        return [number / (width, height)[place % 2] for place, number in enumerate(numbers)]

    def masked(self, item: Entry) -> MaskedImage:
        """The picture with holes in a file, its middle cut to the canvas's aspect."""
        return resize_masked(decode_masked(read_entry(item)()), self.size)


def make_condition_encoder(
    files: Sequence[ConditionFiles],
    path: Path,
    prior: Prior,
    tokenizer: VQGAN,
    size: tuple[int, int],
) -> ConditionEncoder:
    """The encoder of `files` for `prior`, loaded from `path`, on the prior's device.

    `size` is the (height, width) of the samples in pixels.
    """
    tokenizers = track_tokenizers(path, prior, prior.device) if files else {}
    return ConditionEncoder(files, prior.conditions, tokenizer, tokenizers, size)


Maker = Callable[[ConditionEncoder, str, Any], dict[str, Tensor]]
#: Name of a condition -> what one item tells, as entries of a batch without its first axis.
MAKERS: Registry[Maker] = Registry("condition")


@MAKERS.register("segmentation")
@MAKERS.register("depth")
def make_grid(condition_encoder: ConditionEncoder, name: str, item: Entry) -> dict[str, Tensor]:
    """Codes by the condition's own tokenizer."""
    tokenizer = condition_encoder.tokenizers[name]
    return {name: condition_encoder.tokens(tokenizer, condition_encoder.raster(tokenizer, item))}


@MAKERS.register("low_res")
def make_low_res(condition_encoder: ConditionEncoder, name: str, item: Entry) -> dict[str, Tensor]:
    return {
        name: condition_encoder.tokens(condition_encoder.tokenizer, condition_encoder.coarse(item))
    }


@MAKERS.register(HALF)
def make_half(condition_encoder: ConditionEncoder, name: str, item: Entry) -> dict[str, Tensor]:
    """Codes of the upper half, made of nothing else, and -1 below."""
    factor = condition_encoder.tokenizer.config.downsample_factor
    rows, columns = (-(-side // factor) for side in condition_encoder.size)
    if rows < 2:
        raise ImageError("small", "one row of codes has no upper half: raise --size")
    upper = condition_encoder.raster(condition_encoder.tokenizer, item)[
        : condition_encoder.half_height
    ]
    codes = torch.full((rows, columns), -1)
    codes[: rows // 2] = condition_encoder.tokens(condition_encoder.tokenizer, upper)
    return {name: codes}


@MAKERS.register("inpaint")
def make_inpaint(condition_encoder: ConditionEncoder, name: str, item: Entry) -> dict[str, Tensor]:
    """Codes of what is known of a picture with transparent holes, and -1 elsewhere."""
    masked = condition_encoder.masked(item)
    factor = condition_encoder.tokenizer.config.downsample_factor
    known = torch.from_numpy(known_cells(masked.known, factor))
    if known.all():
        raise ImageError("whole", "nothing in it is transparent, so nothing is to be painted")
    return {
        name: condition_encoder.tokens(condition_encoder.tokenizer, masked.image).where(known, -1)
    }


@MAKERS.register("boxes")
def make_boxes(
    condition_encoder: ConditionEncoder, name: str, item: Sequence[Box]
) -> dict[str, Tensor]:
    """Objects (max_objects, 5) in fractions of the canvas; -1 where there are fewer."""
    part = condition_encoder.parts[name]
    assert isinstance(part, Boxes)
    boxes = torch.zeros(max(part.max_objects, len(item)), 5)
    boxes[:, 0] = -1
    for line, box in enumerate(item):
        corners = box.left, box.top, box.left + box.width, box.top + box.height
        number = part.category_names.index(box.category)
        boxes[line] = torch.tensor([number, *condition_encoder.fractions(corners)])
    return {name: boxes}


@MAKERS.register("keypoints")
def make_keypoints(
    condition_encoder: ConditionEncoder, name: str, item: Sequence[Pose]
) -> dict[str, Tensor]:
    """Points (num_points, 2) of the first figure in fractions of the canvas; nan for none."""
    part = condition_encoder.parts[name]
    assert isinstance(part, Keypoints)
    points = torch.full((part.num_points, 2), torch.nan)
    for place, point in enumerate(points_of(part, item)):
        if point is not None:
            points[place] = torch.tensor(condition_encoder.fractions(point))
    return {name: points}


def points_of(part: Keypoints, item: Sequence[Pose]) -> list[Point | None]:
    """The points, in pixels, of the first of some figures, in the prior's order."""
    pose = item[0] if item else {}
    names = part.point_names or map(str, range(part.num_points))
    return [pose.get(name) for name in names]
