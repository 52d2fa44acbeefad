"""A cascade: one prior samples whole images in its window, another enlarges them step by step.

Large canvases lack what a sliding window cannot see: a composition. Here every stage is a folder of
samples of its own, `stages/128x128` and so on below --out, made, resumed and extended like any
other; sample k of a stage is conditioned on sample k of the one before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any, NamedTuple

from ops.paths import AnyPath, ObjectPath, below, join, list_objects
from pipelines.conditioning import (
    ConditionFiles,
    accepted_files,
    gives_known_codes,
    parse_known_codes,
)
from pipelines.console import show
from pipelines.flags import GenerateFlags
from pipelines.generation.flags import parse_size
from pipelines.generation.index import failed_lines, read_parts
from pipelines.generation.job import GenerationOutcome, devices_of, generate_samples
from pipelines.generation.outputs import image_path
from pipelines.generation.settings import read_record
from pipelines.generation.stage_sizes import (
    LOW_RES,
    Size,
    composition_side,
    stage_sizes,
    upscale_ratio,
)
from pipelines.inputs import Entry
from prior import Prior, load_prior

STAGES = "stages"


class Stage(NamedTuple):
    """One stage of a cascade: what it is conditioned on, and what became of it."""

    flags: GenerateFlags
    outcome: GenerationOutcome


def generate_cascade(flags: GenerateFlags) -> GenerationOutcome:
    """Generate the samples that the folder lacks, and those of the stages before that these need.

    Raises UserError for flags that cannot be used with the priors or the folders.
    """
    assert flags.prior is not None
    assert flags.upscale is not None
    assert flags.size is not None
    assert flags.count is not None
    base, upscaler = load_prior(flags.prior), load_prior(flags.upscale)
    sizes = stage_sizes(parse_size(flags.size), composition_side(base), upscale_ratio(upscaler))
    known = parse_known_codes(flags.condition)
    stage: Stage | None = None
    with devices_of(flags) as devices:
        for number, (width, height) in enumerate(sizes):
            asked = _flags_of(flags, base, upscaler, sizes, number)
            show(f"stage {number + 1} of {len(sizes)}: {asked.prior}, {width}x{height} pixels")
            outcome = generate_samples(
                asked,
                given=(_images_of(stage, flags.count), *known) if stage else (),
                lacking=_given_up(stage.flags.out) if stage else (),
                prior=upscaler if stage else base,
                devices=devices,
            )
            stage = Stage(asked, outcome)
    assert stage is not None
    return stage.outcome


def _flags_of(
    flags: GenerateFlags, base: Prior, upscaler: Prior, sizes: list[Size], number: int
) -> GenerateFlags:
    """The flags of one stage. Those of sampling are the first one's."""
    assert flags.upscale is not None
    first, last = number == 0, number == len(sizes) - 1
    width, height = sizes[number]
    prior = base if first else upscaler
    changed = dataclasses.replace(
        flags,
        prior=flags.prior if first else flags.upscale,
        out=flags.out if last else join(flags.out, STAGES, f"{width}x{height}"),
        size=f"{width}x{height}",
        upscale=None,
        upscale_temperature=None,
        upscale_top_p=None,
        save=flags.save if last else ("images",),
        stride=None if first or prior.config.default_stride is None else flags.stride,
        condition=_conditions_of(flags, base, upscaler, first),
        preview=flags.preview and last,
    )
    if first:
        return changed
    drawing: dict[str, Any] = dict.fromkeys(
        ("top_k", "min_p", "guidance_scale", "guidance_schedule", "guidance_power")
    )
    return dataclasses.replace(
        changed,
        temperature=flags.upscale_temperature,
        top_p=flags.upscale_top_p,
        labels=flags.labels if "label" in upscaler.conditions.entries else (),
        **drawing,
    )


def _conditions_of(
    flags: GenerateFlags, base: Prior, upscaler: Prior, first: bool
) -> tuple[str, ...]:
    """The --condition flags of a stage.

    A condition goes to the prior that takes it, or to the first, whose error then names it. Those
    that give known codes are the first's here: the others are given their inputs.
    """
    of_base, of_upscaler = (accepted_files(prior.conditions) for prior in (base, upscaler))
    found = []
    for text in flags.condition:
        name = text.partition("=")[0]
        known = gives_known_codes(name)
        if first and (known or name in of_base or name not in of_upscaler):
            found.append(text)
        if not first and name in of_upscaler and not known and name != LOW_RES:
            found.append(text)
    return tuple(found)


# --- from stage to stage


def _images_of(stage: Stage, count: int) -> ConditionFiles:
    """The images of a finished stage as inputs of the next: item k is sample k.

    Their digest is that of the settings, which decide them whether they are there or not.
    """
    out = stage.flags.out
    sizes = _png_sizes(out)
    items = [_entry(image_path(out, sample), sizes) for sample in range(count)]
    # Samples of a batch that are not asked for are sampled too, with any input.
    spare = next((item for item in items if item.size), None)
    if spare is not None:
        items = [item if item.size else spare for item in items]
    record = {k: v for k, v in (read_record(out) or {}).items() if k != "count"}
    settings = json.dumps(record, sort_keys=True).encode()
    digest = hashlib.sha256(settings).hexdigest()[:32]
    return ConditionFiles(name=LOW_RES, path=out, items=tuple(items), digest=digest)


def _png_sizes(folder: AnyPath) -> dict[str, int]:
    """Bytes of each PNG of a folder, by name."""
    if isinstance(folder, ObjectPath):
        objects = {below(each.path, folder): each.size for each in list_objects(folder)}
        return {name: size for name, size in objects.items() if name.endswith(".png")}
    with os.scandir(folder) as found:
        return {each.name: each.stat().st_size for each in found if each.name.endswith(".png")}


def _entry(path: AnyPath, sizes: dict[str, int]) -> Entry:
    return Entry(path.name, str(path.absolute()), None, sizes.get(path.name, 0), "", None)


def _given_up(out: AnyPath) -> frozenset[int]:
    """The samples of a folder that were given up."""
    return frozenset(line["sample"] for line in failed_lines(out, read_parts(out).values()))
