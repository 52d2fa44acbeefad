"""Features of images as files next to metrics.json: resumed where they are half done, and reused.

    metrics-features/<hash>/features.npy    float32 (n, D)
                            logits.npy      float32 (n, classes)
                            statistics.npz  mu and sigma, as --reference reads them
                            images.json     n, and the images that could not be read
                     <hash>.1024.partial/   blocks of 1024 images that are done

The hash is of the images' bytes in order, the size they are cut to, the network and its resize
protocol. Blocks are at fixed positions, so restarts change nothing.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops.config import UserError
from ops.files import atomic_path, json_hash, make_folders, read_json, write_bytes, write_json
from ops.images import ImageArray, ImageError
from pipelines.console import progress_bar
from pipelines.evaluation.image_sets import ImageSet
from pipelines.evaluation.inception import FeatureNetwork, Features
from pipelines.evaluation.running_statistics import (
    RunningStatistics,
    Statistics,
    read_statistics,
    write_statistics,
)

BLOCK = 1024  # images
FORMAT = 1  # increased whenever other features would come of the same images

Array = NDArray[np.float32]


class FeatureFiles(NamedTuple):
    """Features of a set of images; the arrays are memory-mapped."""

    pooled: Tensor  # (n, D)
    logits: Tensor  # (n, classes)
    folder: Path
    unreadable: dict[str, str]  # reasons by key

    def statistics(self) -> Statistics:
        """Mean and covariance of the pooled features; needs two images at least."""
        return read_statistics(self.folder / "statistics.npz")


class FeatureFolder:
    """A folder of features that `network`, on `device`, gives for sets of images."""

    def __init__(
        self, folder: Path, network: FeatureNetwork, device: torch.device, block: int = BLOCK
    ) -> None:
        self.folder = folder
        self.network = network
        self.device = device
        self.block = block  # images whose features are written at once

    def features(self, images: ImageSet) -> FeatureFiles:
        """The features of all images that can be read, computed if they are not there yet.

        Raises UserError where none can be read, or the files are corrupt.
        """
        described = {
            "format": FORMAT,
            "images": images.content_hash(),
            "network": self.network.name,
        }
        folder = self.folder / json_hash(described)[:32]
        if not (folder / "images.json").is_file():
            self._compute(images, folder)
        return _open(folder)

    def _compute(self, images: ImageSet, folder: Path) -> None:
        partial = folder.with_suffix(f".{self.block}.partial")
        make_folders(partial)
        blocks = []
        with progress_bar("image") as bar:
            task = bar.add_task("features", total=len(images), note="")
            for number, first in enumerate(range(0, len(images), self.block)):
                end = min(first + self.block, len(images))
                blocks.append(partial / f"{number:05d}.npz")
                if not blocks[-1].is_file():
                    write_bytes(blocks[-1], self._block(images, first, end))
                bar.advance(task, end - first)
        _join(blocks, folder)
        shutil.rmtree(partial)

    def _block(self, images: ImageSet, first: int, end: int) -> bytes:
        """The features of the images at positions `first` to `end`, as an .npz."""
        unreadable: dict[str, str] = {}
        found: list[Features] = []
        for batch in images.batches(first, end):
            unreadable |= {key: str(image) for key, image in batch if isinstance(image, ImageError)}
            readable = [image for _, image in batch if not isinstance(image, ImageError)]
            found += image_features(self.network, readable, self.device)
        columns = [torch.cat(column).numpy() for column in zip(*found, strict=True)]
        pooled, logits = columns or (np.empty((0, 0), np.float32),) * 2
        buffer = io.BytesIO()
        np.savez(buffer, pooled=pooled, logits=logits, unreadable=json.dumps(unreadable))
        return buffer.getvalue()


def image_features(
    network: FeatureNetwork, images: list[ImageArray], device: torch.device
) -> Iterator[Features]:
    """Features of images, uint8 (H, W, 3), in order; those of one size in a row go together."""
    for _, group in itertools.groupby(images, lambda image: image.shape):
        batch = torch.from_numpy(np.stack(list(group)).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            found = network(batch.to(device))
        yield Features(found.pooled.float().cpu(), found.logits.float().cpu())


def _join(blocks: list[Path], folder: Path) -> None:
    """Write the folder of features from the files of its blocks."""
    counts, unreadable = [], {}
    pooled_width = logits_width = 0
    for path in blocks:
        with np.load(path, allow_pickle=False) as block:
            counts.append(len(block["pooled"]))
            unreadable.update(json.loads(str(block["unreadable"])))
            if counts[-1]:
                pooled_width, logits_width = block["pooled"].shape[1], block["logits"].shape[1]
    total, running = sum(counts), RunningStatistics()
    if not total:
        reasons = [f"{key}: {reason}" for key, reason in unreadable.items()]
        raise UserError(f"No image can be read. {reasons[0]}")
    with atomic_path(folder) as partial:
        make_folders(partial)
        pooled = _new_array(partial / "features.npy", (total, pooled_width))
        logits = _new_array(partial / "logits.npy", (total, logits_width))
        starts = itertools.accumulate(counts, initial=0)
        for path, start, count in zip(blocks, starts, counts, strict=False):
            if count:
                with np.load(path, allow_pickle=False) as block:
                    pooled[start : start + count] = block["pooled"]
                    logits[start : start + count] = block["logits"]
                running.update(pooled[start : start + count])
        pooled.flush()
        logits.flush()
        if total > 1:
            write_statistics(partial / "statistics.npz", running.result())
        write_json(partial / "images.json", {"count": total, "unreadable": unreadable})


def _new_array(
    path: Path, shape: tuple[int, int]
) -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
    return np.lib.format.open_memmap(path, "w+", np.dtype(np.float32), shape)


def _open(folder: Path) -> FeatureFiles:
    try:
        # Mapped copy-on-write: torch warns of arrays that cannot be written.
        arrays = [
            torch.from_numpy(np.load(folder / name, mmap_mode="c", allow_pickle=False))
            for name in ("features.npy", "logits.npy")
        ]
        unreadable = dict(read_json(folder / "images.json")["unreadable"])
    except (EOFError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is corrupt ({error}). Remove it and run again.") from None
    return FeatureFiles(arrays[0], arrays[1], folder, unreadable)
