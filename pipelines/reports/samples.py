"""What a report shows of a samples folder: its images, however they were saved, and its index."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from ops.images import ImageError, decode_image, resize_and_crop, to_image
from ops.paths import (
    AnyPath,
    ObjectPath,
    P,
    exists,
    is_folder,
    join,
    list_objects,
    matching,
    open_binary,
)
from pipelines.generation import (
    GIVEN_UP,
    GRID_IMAGES,
    MAX_MEMBER_BYTES,
    STAGES,
    codes_path,
    grid_cells,
    read_index,
    read_made_in,
    read_members,
    read_parts,
    sample_name,
)
from pipelines.reports.plots import data_uri, image_uri
from pipelines.store import CodeStore, summarise_environments
from tokenizer import decode_tiled, load_tokenizer

MAX_BYTES = 4 << 20  # larger PNGs are scaled down
MAX_PIXELS = 1 << 20  # after scaling down
MAX_DECODED = 1 << 28  # pixels of a sample that is decoded

Named = tuple[str, str]  # a name, and an image as a data URI
MaybeNamed = tuple[str, str | None]  # None where the image is too large to be read
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


class Sample(NamedTuple):
    """A sample's name, and as data URIs its conditions, the stages of a cascade and its image."""

    name: str
    sources: tuple[str, ...]
    stages: tuple[str, ...] = ()  # the sizes of the stages, as 128x128


def sample_images(path: AnyPath, limit: int) -> tuple[list[Sample], int]:
    """The first `limit` samples of a folder, and how many samples it has.

    Contact sheets of conditions that cannot be divided among the samples come first. Images too
    large to be read are left out.
    """
    files = sorted(matching(path, "sample-*.png"))
    if not files:
        found = islice(_in_tars(path) or _in_codes(path), limit)
        return [Sample(name, (uri,)) for name, uri in found if uri is not None], _count_ok(path)
    shown, sheets, stages = files[:limit], [], _stages(path)
    before: dict[str, list[str]] = {file.name: [] for file in shown}
    for sheet in sorted(matching(path, "condition-*.png")):
        if stages and sheet.name == "condition-low_res.png":
            continue  # the stage before shows the same
        cells = _cells(_bytes(sheet), len(files[:GRID_IMAGES]))
        if not cells:
            sheets.append(Sample(sheet.name.removesuffix(".png"), _uris(sheet)))
        for file, cell in zip(shown, cells, strict=False):
            before[file.name].append(cell)
    samples = [
        Sample(
            file.name.removesuffix(".png"),
            (
                *before[file.name],
                *(uri for p in [*stages, path] for uri in _uris(join(p, file.name))),
            ),
            tuple(stage.name for stage in stages if exists(join(stage, file.name))),
        )
        for file in shown
    ]
    return [sample for sample in [*sheets, *samples] if sample.sources], len(files)


def _stages(path: AnyPath) -> list[AnyPath]:
    """The folders of a cascade's earlier stages, the smallest images first."""
    folders: list[AnyPath] = [*folders_in(join(path, STAGES))]
    sizes = {folder: match for folder in folders if (match := SIZE.fullmatch(folder.name))}
    return sorted(sizes, key=lambda folder: int(sizes[folder][1]) * int(sizes[folder][2]))


def folders_in(path: P) -> Iterator[P]:
    """The folders in a folder, in no order; none where it does not exist."""
    if isinstance(path, ObjectPath):
        names = {each.path.relative_to(path).parts[0] for each in list_objects(path)}
        yield from (join(path, name) for name in names)
    elif path.is_dir():
        yield from (cast(Any, child) for child in path.iterdir() if child.is_dir())


def _uris(path: AnyPath) -> tuple[str, ...]:
    """The PNG at a path; nothing where there is none, or it is too large to be read."""
    uri = _uri(_bytes(path)) if exists(path) else None
    return () if uri is None else (uri,)


def _cells(data: bytes, count: int) -> list[str]:
    """The images of a contact sheet; none where it cannot be read, or divided so."""
    try:
        return [image_uri(cell) for cell in grid_cells(decode_image(data), count)]
    except ImageError:
        return []


def _count_ok(path: AnyPath) -> int:
    return sum(part.ok for part in read_parts(path).values())


def _bytes(path: AnyPath) -> bytes:
    with open_binary(path, follow=False) as file:
        return file.read(MAX_MEMBER_BYTES)


def _uri(data: bytes) -> str | None:
    """A PNG as it is, scaled down above MAX_BYTES; None where it is too large to be read."""
    if len(data) <= MAX_BYTES:
        return data_uri(data)
    try:
        return image_uri(_scaled_down(decode_image(data)))
    except ImageError:
        return None


def _scaled_down(image: np.ndarray) -> np.ndarray:
    scale = min(1.0, (MAX_PIXELS / (image.shape[0] * image.shape[1])) ** 0.5)
    size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    return resize_and_crop(image, size)


def _in_tars(path: AnyPath) -> Iterator[MaybeNamed] | None:
    tars = sorted(matching(join(path, "tars"), "*.tar"))
    return _read_tars(tars) if tars else None


def _read_tars(tars: list[AnyPath]) -> Iterator[MaybeNamed]:
    for path in tars:
        for name, data in read_members(path, ".png"):
            yield name, _uri(data)


def _in_codes(path: AnyPath) -> Iterator[MaybeNamed]:
    if not is_folder(codes_path(path)):
        return
    store = CodeStore.open(codes_path(path))
    tokenizer = load_tokenizer(store.tokenizer_folder)
    for row in (store[place] for place in range(len(store))):
        codes = torch.from_numpy(row["codes"].astype(np.int64))[None]
        if codes.numel() * tokenizer.config.downsample_factor**2 > MAX_DECODED:
            yield row["key"], None
            continue
        pixels = decode_tiled(tokenizer, codes, (row["height"], row["width"]))
        yield row["key"], image_uri(_scaled_down(to_image(pixels)[0]))


def index_facts(path: AnyPath) -> tuple[list[Named], list[tuple[str, str, str]]]:
    """(status, count) of the samples, what they were made with, and (name, status, reason) of the
    ones that were given up."""
    index = read_index(path).select(["sample", "status", "error"])
    counts = Counter(index["status"].to_pylist())
    failed = [
        (sample_name(line["sample"]), line["status"], line["error"] or "")
        for line in index.to_pylist()
        if line["status"] in GIVEN_UP
    ]
    facts = [(status, f"{count:,}") for status, count in counts.items()]
    made_in = (read_made_in(path, number) for number in read_parts(path))
    facts += [("made with", line) for line in summarise_environments(made_in, "samples")]
    return facts, failed
