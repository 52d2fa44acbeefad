"""Images of a folder, in the order of their keys, read a batch at a time."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.config import UserError
from ops.images import ImageArray, ImageError, decode_image, resize_and_crop
from ops.web_paths import SourcePath
from pipelines.generation import read_index
from pipelines.inputs import InputError, content_hash, list_input, read_bytes, thread_map

BATCH = 32  # images decoded at once
SAMPLE_FILE = r"^sample-[0-9]+\.png$"

Size = tuple[int, int]  # height and width, pixels
Numbered = tuple[str, ImageArray | ImageError]  # a key, and its image or why there is none


class ImageSet:
    """Some images. With `size` they are scaled to cover it and cut in the centre."""

    def __init__(self, entries: pa.Table, size: Size | None = None) -> None:
        self.entries = entries
        self.size = size

    def __len__(self) -> int:
        return len(self.entries)

    def batches(self, first: int = 0, end: int | None = None) -> Iterator[list[Numbered]]:
        """The images at positions `first` to `end`, at most BATCH at a time, in order."""
        read = functools.partial(_read, size=self.size)
        end = len(self) if end is None else end
        for start in range(first, end, BATCH):
            chosen = self.entries.slice(start, min(BATCH, end - start))
            images = thread_map(read, chosen, "reading images")
            yield list(zip(chosen["key"].to_pylist(), images, strict=True))

    def content_hash(self) -> str:
        """SHA-256, in hex, of the images' files in order, and of the size they are cut to."""
        digest = hashlib.sha256(repr(self.size).encode())
        for found in thread_map(_content, self.entries, "comparing images"):
            digest.update(found.encode())
        return digest.hexdigest()

    def first_size(self) -> Size:
        """Height and width of the first image that can be read; UserError without any."""
        for batch in self.batches():
            for _, image in batch:
                if not isinstance(image, ImageError):
                    return image.shape[0], image.shape[1]
        raise UserError(f"None of {len(self)} images can be read: {self.entries['key'][0]}, ...")


def _read(
    uri: str, offset: int | None, size_bytes: int, size: Size | None
) -> ImageArray | ImageError:
    try:
        image = decode_image(read_bytes(uri, offset, size_bytes))
    except ImageError as error:
        return error
    return image if size is None else resize_and_crop(image, size)


def _content(uri: str, offset: int | None, size: int) -> str:
    try:
        return content_hash(read_bytes(uri, offset, size))
    except ImageError as error:
        return error.reason


def list_samples(folder: Path, most: int | None) -> ImageSet:
    """The samples in what generate wrote, or the images of any folder.

    Raises UserError where generate saved no images, or not all samples are there yet.
    """
    if not (folder / "index").is_dir():
        return list_images(folder, most)
    done = int(pc.sum(pc.equal(read_index(folder)["status"], "ok")).as_py() or 0)
    tars = folder / "tars"
    try:
        entries = list_input(tars if tars.is_dir() else folder).table
    except InputError:
        entries = pa.table({"key": pa.array([], pa.string())})
    if not tars.is_dir():
        entries = entries.filter(pc.match_substring_regex(entries["key"], SAMPLE_FILE))
    if len(entries) < max(done, 1):
        raise UserError(
            f"{folder} has images of {len(entries)} of {done} samples. Run generate with --save "
            "images or --save tars."
        )
    return _at_most(entries, most)


def list_images(folder: SourcePath, most: int | None) -> ImageSet:
    """The images of a folder, tar or table; `most` are evenly spaced among them, by key."""
    return _at_most(list_input(folder).table, most)


def _at_most(entries: pa.Table, most: int | None) -> ImageSet:
    if most is not None and most < len(entries):
        entries = entries.take(pa.array(np.arange(most) * len(entries) // most))
    return ImageSet(entries)
