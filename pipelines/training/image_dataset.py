"""Random crops of images for training a tokenizer, each a function of (seed, position).

The images are listed ones (ImageCrops), or those of tars that are streamed (streamed_crops.py).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ops.cache import ArrayCache
from ops.config import UserError
from ops.images import ImageError, Raster
from ops.noise import uniforms
from ops.ranks import ALONE, Ranks
from ops.transient_errors import TransientError, retried
from pipelines.inputs import Ledger
from pipelines.streaming import KeyedOrder
from tokenizer import Modality, ModalityConfig, make_modality

CACHE_BYTES = 2 << 30  # of decoded images, for all loader workers of a process together
SHARDS_TOGETHER = 4  # half of what pipelines/inputs/parquet.py keeps: others are read ahead
PHOTOGRAPHS = make_modality(ModalityConfig())


class Crop(NamedTuple):
    """The sample at one position of the training order."""

    pixels: Raster | None  # (crop_size, crop_size[, 3]); None where no image can be read
    unreadable: list[tuple[str, str]]  # (key, reason) of images first found to be so here
    failure: str | None = None  # why an image could not be read now, and perhaps can be later
    notes: tuple[Any, ...] = ()  # for Crops.taken() in the training process


class Candidate(NamedTuple):
    """An image that may come at a position."""

    number: Hashable  # another one for each image
    key: str
    read: Callable[[], bytes]


class Crops(Dataset[Crop], ABC):
    """A map-style dataset of square crops, indexed by position in an endless training order.

    A crop is a square of the image scaled so that its short side lies between the two of
    `scale_range` (pixels), log-uniformly, and mirrored half the time. In place of an image that
    cannot be read comes the next candidate for its position that can.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        crop_size: int,
        scale_range: tuple[int, int],
        seed: int,
        modality: Modality = PHOTOGRAPHS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.batch_size, self.crop_size, self.seed = batch_size, crop_size, seed
        self.scale_range, self.modality = scale_range, modality
        self.cache: ArrayCache[Hashable] = ArrayCache(cache_bytes)
        self._unreadable: set[Hashable] = set()

    @abstractmethod
    def candidates(self, position: int) -> Iterator[Candidate]:
        """The image at a position, then those that come in its place where it cannot be read."""

    def taken(self, crop: Crop) -> None:
        """Called in the training process with each batch, in order, before it is used."""

    def __getitem__(self, position: int) -> Crop:
        unreadable: list[tuple[str, str]] = []
        try:
            image = self._image_at(position, unreadable)
        except TransientError as error:  # returned: loader workers raise it with a traceback
            return Crop(None, unreadable, str(error))
        return Crop(None if image is None else self._crop(image, position), unreadable)

    def positions(self, step: int, ranks: Ranks = ALONE) -> list[int]:
        """The positions of a step's batch; of several processes, rank r has every world-th."""
        first = step * self.batch_size
        return list(range(first + ranks.rank, first + self.batch_size, ranks.world))

    def keys(self, step: int, ranks: Ranks = ALONE) -> list[str]:
        """The keys of the images that a step's crops are cut from, where all can be read."""
        return [next(self.candidates(p)).key for p in self.positions(step, ranks)]

    def _crop(self, image: Raster, position: int) -> Raster:
        scale_draw, top_draw, left_draw, mirror_draw = uniforms(self.seed, [position], 1, 4).flat
        low, high = (math.log(max(side, self.crop_size)) for side in self.scale_range)
        short_side = math.exp(low + (high - low) * scale_draw)
        shorter = min(image.shape[:2])
        # In the image's own pixels; rounding must not make it larger than the image.
        side = min(shorter * self.crop_size / short_side, shorter)
        top, left = top_draw * (image.shape[0] - side), left_draw * (image.shape[1] - side)
        crop = Image.fromarray(image).resize(
            (self.crop_size, self.crop_size),
            self.modality.resampling,
            box=(left, top, left + side, top + side),
        )
        return np.asarray(crop)[:, :: -1 if mirror_draw < 0.5 else 1]

    def _image_at(self, position: int, unreadable: list[tuple[str, str]]) -> Raster | None:
        """The image at a position, or the next one that can be read; None where there is none."""
        for candidate in self.candidates(position):
            if candidate.number not in self._unreadable:
                image = self._decode(candidate, unreadable)
                if image is not None:
                    return image
        return None

    def _decode(self, candidate: Candidate, unreadable: list[tuple[str, str]]) -> Raster | None:
        """The image, no larger than crops need, from the cache where it is there."""
        number, key, read = candidate
        cached = self.cache.get(number)
        if cached is not None:
            return cached
        try:
            image = retried(lambda: self._shrink(self.modality.decode(read())), key)
        except (ImageError, OSError) as error:
            self._unreadable.add(number)
            unreadable.append((key, str(error)))
            return None
        self.cache.put(number, image)
        return image

    def _shrink(self, image: Raster) -> Raster:
        """The image reduced to twice the size that its largest crops show of it."""
        scale = 2 * max(*self.scale_range, self.crop_size) / min(image.shape[:2])
        if scale >= 1:
            return image
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        return np.asarray(Image.fromarray(image).resize(size, self.modality.shrinking))


class ImageCrops(Crops):
    """Crops of listed images.

    Each image comes once an epoch, in a keyed order: among all, or with `shard_sizes`, numbers of
    neighbours in `read` that are read together, among SHARDS_TOGETHER of these.

    `read` holds (key, function that returns the image file's bytes). Raises UserError where it is
    empty.
    """

    def __init__(
        self,
        read: Sequence[tuple[str, Callable[[], bytes]]],
        *,
        shard_sizes: Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not read:
            raise UserError("There is no image to train on. Does --data hold photographs?")
        self.read = read
        sizes = np.array([len(read)] if shard_sizes is None else shard_sizes, np.int64)
        self._order = KeyedOrder(sizes, self.seed, SHARDS_TOGETHER)

    def candidates(self, position: int) -> Iterator[Candidate]:
        first = int(self._order(np.array([position]))[0])
        for number in chain(range(first, len(self.read)), range(first)):
            yield Candidate(number, *self.read[number])


def load_batches(
    crops: Crops,
    ledger: Ledger,
    start: int,
    stop: int,
    *,
    ranks: Ranks = ALONE,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """This rank's samples (B, C, crop_size, crop_size) of steps `start` to `stop`, in order.

    `num_workers` processes decode ahead, 0 decodes in this one; the batches are the same for any
    number. Images that cannot be read go into `ledger`, once each. Raises UserError where none
    can be read, and TransientError where one cannot be read now: another in its place would change
    the run.
    """
    settings: dict[str, Any] = {}
    if num_workers:
        # Forking a process with threads (torch's, Ray's) can deadlock the child; spawning would
        # import torch anew, seconds long, in each worker. The fork server imports it once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        settings = {"multiprocessing_context": context, "worker_init_fn": _init_worker}
    loader = DataLoader(
        crops,
        batch_sampler=(crops.positions(step, ranks) for step in range(start, stop)),
        num_workers=num_workers,
        collate_fn=_collate,
        generator=Generator(),  # or the loader would draw from the training's random state
        **settings,
    )
    for batch in loader:
        for key, reason in batch.unreadable:
            ledger.add(key, reason)
        crops.taken(batch)
        if batch.failure is not None:
            raise TransientError(batch.failure)
        if batch.pixels is None:
            raise UserError(f"Not one image can be read; the reasons are in {ledger.path}.")
        yield crops.modality.samples(batch.pixels)


def _collate(crops: list[Crop]) -> Crop:
    """The crops of a batch as one, its pixels (B, crop_size, crop_size[, 3]).

    They stay arrays as small as the files' own: loader workers send arrays through pipes, but
    tensors through /dev/shm, of which containers have 64 MB.
    """
    pixels = [crop.pixels for crop in crops if crop.pixels is not None]
    unreadable = [entry for crop in crops for entry in crop.unreadable]
    failures = [crop.failure for crop in crops if crop.failure is not None]
    whole = np.stack(pixels) if len(pixels) == len(crops) else None
    notes = tuple(note for crop in crops for note in crop.notes)
    return Crop(whole, unreadable, failures[0] if failures else None, notes)


def _init_worker(worker: int) -> None:
    """Set up a loader worker: its part of the cache, and when it ends.

    The training process handles Ctrl-C. If that process is killed, torch's own check misses it,
    since a worker's parent is the fork server.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_training_process, daemon=True).start()
    info: Any = get_worker_info()
    info.dataset.cache.max_bytes //= info.num_workers


def _exit_with_training_process() -> None:
    training_process = multiprocessing.parent_process()
    assert training_process is not None
    training_process.join()
    os._exit(1)
