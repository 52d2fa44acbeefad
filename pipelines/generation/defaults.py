"""What generate makes where flags do not say: which priors, classes, size and number of samples."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.config import ConfigError
from ops.images import ImageError, image_size
from pipelines.conditioning import path_of_condition
from pipelines.console import show
from pipelines.flags import GenerateFlags
from pipelines.generation.flags import parse_size
from pipelines.generation.settings import read_record
from pipelines.generation.stage_sizes import (
    LOW_RES,
    AnyPrior,
    Size,
    composition_side,
    low_res_ratio,
    upscale_ratio,
)
from pipelines.inputs import Entry, list_input, read_entry
from prior import ClassLabel, PriorDescription, bundled_priors, describe_prior

#: The bundled priors that generate uses where --prior is not given.
BASE, UPSCALER = "clothing", "photo-upscale4"
COUNT = 4
MOST_PIXELS = 100_000_000  # of a size that is not asked for


def with_defaults(flags: GenerateFlags) -> GenerateFlags:
    """The flags with a prior, a size and a count, and a line about what was chosen.

    A folder that has samples keeps its size and count. Raises UserError where --prior is not given
    and none is bundled, and for priors, conditions or a folder that cannot be read.
    """
    if flags.prior is None:
        flags = _with_bundled_priors(flags)
    record = read_record(flags.out) or {}
    entries = _low_res_entries(flags)
    count = flags.count or record.get("count") or len(entries) or COUNT
    size = flags.size or _recorded_size(record)
    if size is None:
        assert flags.prior is not None
        described = describe_prior(flags.prior)
        enlarges = upscale_ratio(describe_prior(flags.upscale)) if flags.upscale else 1
        width, height = (enlarges * side for side in _own_size(described, entries))
        size = f"{width}x{height}"
        if width * height > MOST_PIXELS:
            raise ConfigError(f"The samples would have {size} pixels. Name a smaller --size.")
    return dataclasses.replace(flags, count=count, size=size)


def _with_bundled_priors(flags: GenerateFlags) -> GenerateFlags:
    if BASE not in bundled_priors():
        raise ConfigError(
            f"--prior is needed: no prior {BASE!r} is bundled. Name a run folder of train_prior."
        )
    base = describe_prior(BASE)
    side, upscale = composition_side(base), flags.upscale
    asks_for_more = flags.size is None or max(parse_size(flags.size)) > side
    if upscale is None and UPSCALER in bundled_priors() and asks_for_more:
        upscale = Path(UPSCALER)
    by = f", enlarged by {upscale}" if upscale else ""
    show(f"prior: {BASE}{by}; --prior names another one")
    return dataclasses.replace(
        flags, prior=Path(BASE), upscale=upscale, labels=flags.labels or class_names(base)
    )


def class_names(prior: AnyPrior) -> tuple[str, ...]:
    """The classes of a prior, by name where they have names; none where it has no classes."""
    for part in prior.conditions.parts:
        if isinstance(part, ClassLabel):
            return part.label_names or tuple(map(str, range(part.num_classes)))
    return ()


def _recorded_size(record: Mapping[str, Any]) -> str | None:
    width, height = record.get("width"), record.get("height")
    return f"{width}x{height}" if isinstance(width, int) and isinstance(height, int) else None


def _low_res_entries(flags: GenerateFlags) -> list[Entry]:
    """The images of --condition low_res."""
    path = path_of_condition(flags.condition, LOW_RES)
    return [] if path is None else list_input(path).entries


def _own_size(prior: PriorDescription, entries: list[Entry]) -> Size:
    """The size of a prior's own samples: of the most frequent low-resolution images enlarged, or
    of the images on which it was trained."""
    ratio = low_res_ratio(prior)
    sizes = _sizes_of(entries) if ratio else Counter()
    if not ratio or not sizes:
        side = composition_side(prior)
        return side, side
    (width, height), _ = sizes.most_common(1)[0]
    others = sum(number for (w, h), number in sizes.items() if w * height != h * width)
    if others:
        show(
            f"{others} of {len(entries)} images of {LOW_RES} have another aspect than "
            f"{width}x{height}: their middle is used"
        )
    return ratio * width, ratio * height


def _sizes_of(entries: list[Entry]) -> Counter[Size]:
    """How many of the images have which (width, height)."""
    sizes: Counter[Size] = Counter()
    for entry in entries:
        try:
            sizes[image_size(io.BytesIO(read_entry(entry)()))] += 1
        except ImageError:
            continue  # the check of the condition's files names it
    return sizes
