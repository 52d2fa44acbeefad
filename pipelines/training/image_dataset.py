"""Random crops of images for training a tokenizer, named by (seed, step, place)."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ops.config import UserError
from ops.images import ImageError, Raster
from ops.noise import uniforms
from ops.ranks import ALONE, Ranks
from pipelines.inputs import Ledger
from pipelines.streaming import KeyedOrder
from tokenizer import Modality, ModalityConfig, make_modality

CACHE_BYTES = 2 << 30
SHARDS_TOGETHER = 4  # half of what pipelines/inputs/parquet.py keeps: others are read ahead
PHOTOGRAPHS = make_modality(ModalityConfig())


class ImageCrops:
    """`crops.batch(step, ranks)` -> samples (B, ., crop_size, crop_size) of a content.

    Each image comes once an epoch, in a keyed order: among all, or with `shard_sizes`, numbers of
    neighbours in `read` that are read together, among SHARDS_TOGETHER of these. A crop is a square
    of the image scaled so that its short side lies, evenly in its logarithm, between the two of
    `scale_range` (pixels), and mirrored half the time. An image that cannot be read is listed in
    `ledger` with its reason, and the next one takes its place.
    """

    def __init__(
        self,
        read: Sequence[tuple[str, Callable[[], bytes]]],
        *,
        batch_size: int,
        crop_size: int,
        scale_range: tuple[int, int],
        seed: int,
        ledger: Ledger,
        modality: Modality = PHOTOGRAPHS,
        shard_sizes: Sequence[int] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if not read:
            raise UserError("There is no image to train on. Does --data hold photographs?")
        self.read = read
        self.batch_size, self.crop_size, self.seed = batch_size, crop_size, seed
        self.scale_range = scale_range
        self.ledger, self.modality = ledger, modality
        sizes = np.array([len(read)] if shard_sizes is None else shard_sizes, np.int64)
        self._order = KeyedOrder(sizes, seed, SHARDS_TOGETHER)
        self._cache = ImageCache(cache_bytes)
        self._bad: set[int] = set()

    def batch(self, step: int, ranks: Ranks = ALONE) -> Tensor:
        """The crops of a step; of several processes, rank r's at positions r, r + world, ..."""
        crops = [self._crop(position) for position in self._positions(step, ranks)]
        return self.modality.samples(np.stack(crops))

    def keys(self, step: int, ranks: Ranks = ALONE) -> list[str]:
        """The keys of the images that a step's crops are cut from, where all can be read."""
        return [self.read[self._number_at(p)][0] for p in self._positions(step, ranks)]

    def _positions(self, step: int, ranks: Ranks) -> range:
        return range(step * self.batch_size + ranks.rank, (step + 1) * self.batch_size, ranks.world)

    def _crop(self, position: int) -> Raster:
        image = self._image_at(position)
        scale_draw, top_draw, left_draw, mirror_draw = uniforms(self.seed, [position], 1, 4).flat
        low, high = (math.log(max(side, self.crop_size)) for side in self.scale_range)
        short_side = math.exp(low + (high - low) * scale_draw)
        side = min(image.shape[:2]) * self.crop_size / short_side  # in the image's own pixels
        top, left = top_draw * (image.shape[0] - side), left_draw * (image.shape[1] - side)
        crop = Image.fromarray(image).resize(
            (self.crop_size, self.crop_size),
            self.modality.resampling,
            box=(left, top, left + side, top + side),
        )
        return np.asarray(crop)[:, :: -1 if mirror_draw < 0.5 else 1]

    def _image_at(self, position: int) -> Raster:
        """The image of a position in the endless shuffled stream; a bad one's successor."""
        first = self._number_at(position)
        for offset in range(len(self.read)):
            number = (first + offset) % len(self.read)
            image = None if number in self._bad else self._decode(number)
            if image is not None:
                return image
        raise UserError(f"Not one image can be read; the reasons are in {self.ledger.path}.")

    def _number_at(self, position: int) -> int:
        return int(self._order(np.array([position]))[0])

    def _decode(self, number: int) -> Raster | None:
        """The image, no larger than crops need, from memory where it fits; None when it is bad."""
        cached = self._cache.get(number)
        if cached is not None:
            return cached
        key, read = self.read[number]
        try:
            image = self._shrink(self.modality.decode(read()))
        except (ImageError, OSError) as error:
            self._bad.add(number)
            self.ledger.add(key, str(error))
            return None
        self._cache.put(number, image)
        return image

    def _shrink(self, image: Raster) -> Raster:
        """The image reduced to twice the size that its largest crops show of it."""
        scale = 2 * max(*self.scale_range, self.crop_size) / min(image.shape[:2])
        if scale >= 1:
            return image
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        return np.asarray(Image.fromarray(image).resize(size, self.modality.shrinking))


class ImageCache:
    """Decoded images up to so many bytes; the longest unused go first. Safe among threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self._bytes = limit, 0
        self._images: OrderedDict[int, Raster] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> Raster | None:
        with self._lock:
            if number in self._images:
                self._images.move_to_end(number)
            return self._images.get(number)

    def put(self, number: int, image: Raster) -> None:
        with self._lock:
            if number in self._images or image.nbytes > self.limit:
                return
            self._images[number] = image
            self._bytes += image.nbytes
            while self._bytes > self.limit:
                self._bytes -= self._images.popitem(last=False)[1].nbytes
