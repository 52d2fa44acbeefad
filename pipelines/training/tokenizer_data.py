"""Files that a tokenizer is trained and evaluated on: images, label maps or depth maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ops.config import UserError
from ops.grey_images import decode_labels
from ops.images import ImageError, resize_and_crop
from ops.web_paths import SourcePath
from pipelines.inputs import (
    Address,
    Entry,
    Lost,
    group_of,
    held_out,
    is_table,
    list_input,
    paired,
    parse_address,
    read_bytes,
    read_entry,
    thread_map,
)
from tokenizer import Modality, ModalityConfig

MOST_CLASSES_FOUND = 1024  # files with higher labels are more likely depth maps or photographs


class TokenizerData(NamedTuple):
    """The files to train and to evaluate on."""

    learned: list[Entry]  # to train on
    measured: list[Entry]  # held out
    lost: list[Lost]  # images without a partner; folders and archives not listed completely


def list_data(data: SourcePath, targets: SourcePath | None, held_out_share: float) -> TokenizerData:
    """The images in `data`, or their partners in `targets`, split by the images' keys.

    So the tokenizers of images and of their label maps hold out the same keys. Raises UserError
    where no image has a partner.
    """
    listing = list_input(data)
    entries = listing.entries
    unread = set(listing.unread)
    lost = [(key, reason) for key, reason in listing.skipped if key in unread]
    if targets is not None:
        entries, without_partner = paired(entries, list_input(targets).entries)
        lost += without_partner
        if not entries:
            raise UserError(
                f"No file in {targets} has the name of an image in {data}. Partners differ in what "
                "comes after the last dot alone: lake/a.jpg and lake/a.png."
            )
    which = [held_out(entry.key, held_out_share) for entry in entries]
    return TokenizerData(
        [entry for entry, out in zip(entries, which, strict=True) if not out],
        [entry for entry, out in zip(entries, which, strict=True) if out],
        lost,
    )


def in_groups(entries: list[Entry]) -> tuple[list[Entry], list[int] | None]:
    """The entries sorted by Parquet row group, and the size of each group; None without tables.

    A table is read one row group at a time, so shuffling all its rows would read each group over
    and over. Files and tar members can be read in any order; together they are one group.
    """
    places = [parse_address(entry.uri) for entry in entries]
    if not any(place and is_table(place.path) for place in places):
        return entries, None

    def group(place: Address | None) -> tuple[str, int]:
        return (place.path, group_of(*place)) if place and is_table(place.path) else ("", 0)

    groups = [group(place) for place in places]
    order = sorted(range(len(entries)), key=lambda number: (groups[number], number))
    sizes = [len(list(together)) for _, together in groupby(groups[number] for number in order)]
    return [entries[number] for number in order], sizes


def with_classes(config: ModalityConfig, entries: Sequence[Entry]) -> ModalityConfig:
    """`config`, for label maps without num_classes with the number of classes found in the files.

    Raises UserError where the files are not label maps.
    """
    if config.kind != "segmentation" or config.num_classes:
        return config
    highest = functools.partial(_highest_label, void_label=config.void_label)
    columns = {name: [getattr(e, name) for e in entries] for name in ("uri", "offset", "size")}
    found = max(thread_map(highest, pa.table(columns), "looking for labels"), default=-1)
    if found < 0:
        raise UserError(
            f"None of {len(entries)} files is a label map: a grey or palette PNG whose numbers are "
            "classes. Does --data, or --targets, name a folder of those?"
        )
    if found >= MOST_CLASSES_FOUND:
        raise UserError(
            f"The highest label found is {found:,}: are these label maps? If they are, say so with "
            f"--num-classes {found + 1}."
        )
    return replace(config, num_classes=found + 1)


def _highest_label(uri: str, offset: int | None, size: int, void_label: int) -> int:
    """The highest label of one file; -1 where it has none or cannot be read."""
    try:
        labels = decode_labels(read_bytes(uri, offset, size))
    except ImageError:
        return -1
    valid = labels[labels != void_label]
    return int(valid.max()) if valid.size else -1


def evaluation_samples(
    modality: Modality, entries: Sequence[Entry], size: int, on_bad: Callable[[str, str], None]
) -> Tensor:
    """Centre crops (N, C, size, size) of the readable files; on_bad(key, reason) of others."""
    squares = []
    for entry in entries:
        try:
            raster = modality.decode(read_entry(entry)())
        except ImageError as error:
            on_bad(entry.key, str(error))
            continue
        squares.append(resize_and_crop(raster, size, resampling=modality.resampling))
    return modality.samples(np.stack(squares)) if squares else torch.empty(0)
