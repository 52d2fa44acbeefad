"""What a prior is to be told, by name, sized for the code stores that it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ops.config import ConfigError, Registry
from pipelines.store import CodeStore
from pipelines.streaming import TRACK_CONDITIONS, open_tracks
from prior.conditions import (
    CONDITIONS,
    Boxes,
    ClassLabel,
    Condition,
    Conditions,
    Coordinates,
    Inpaint,
    Keypoints,
    StartOfSequence,
)

COORDINATES = 1024  # different tokens of coordinates, as published

Maker = Callable[[Sequence[CodeStore], Sequence[str], str], Condition]
#: Name of a condition -> what makes it of stores, class names and the name.
MAKERS: Registry[Maker] = Registry("condition")


def tracks_of(names: Sequence[str]) -> tuple[str, ...]:
    """The tracks of a store that conditions of those names read."""
    return tuple(name for name in names if name in TRACK_CONDITIONS)


def make_conditions(
    names: Sequence[str], stores: Sequence[CodeStore], label_names: Sequence[str]
) -> Conditions:
    """The conditions that `names` stand for.

    Raises ConfigError for a name twice or of none, StoreError where a store lacks what they read.
    """
    for name in names:
        CONDITIONS[name]
        if names.count(name) > 1:
            raise ConfigError(f"--conditions names {name!r} twice.")
    codebook_size = stores[0].provenance["image"]["codebook_size"]
    parts = [MAKERS[name](stores, label_names, name) for name in names]
    return Conditions(parts, codebook_size)


def provenance_of(store: CodeStore, track: str) -> dict[str, Any]:
    """How a track was made; raises StoreError where the store has none of that name."""
    return open_tracks([store], [track])[0][track].provenance[track]


@MAKERS.register("sos")
def make_sos(stores: Sequence[CodeStore], label_names: Sequence[str], name: str) -> Condition:
    return StartOfSequence()


@MAKERS.register("class")
def make_class(stores: Sequence[CodeStore], label_names: Sequence[str], name: str) -> Condition:
    if not label_names:
        raise ConfigError(
            f"{stores[0].path} has no classes. Encode anew with --labels first, "
            "or train with --conditions sos."
        )
    return ClassLabel(num_classes=len(label_names), label_names=tuple(label_names))


@MAKERS.register("segmentation")
@MAKERS.register("depth")
def make_grid(stores: Sequence[CodeStore], label_names: Sequence[str], name: str) -> Condition:
    made = provenance_of(stores[0], name)
    fields = {"codebook_size": made["codebook_size"], "fingerprint": made["fingerprint"]}
    return CONDITIONS[name](**fields)


@MAKERS.register("low_res")
def make_low_res(stores: Sequence[CodeStore], label_names: Sequence[str], name: str) -> Condition:
    made = provenance_of(stores[0], name)
    fields = {name: made[name] for name in ("codebook_size", "fingerprint", "ratio")}
    return CONDITIONS[name](**fields)


@MAKERS.register("inpaint")
def make_inpaint(stores: Sequence[CodeStore], label_names: Sequence[str], name: str) -> Condition:
    return Inpaint(codebook_size=stores[0].provenance["image"]["codebook_size"])


@MAKERS.register("coordinates")
def make_coordinates(
    stores: Sequence[CodeStore], label_names: Sequence[str], name: str
) -> Condition:
    factor = stores[0].provenance["image"]["downsample_factor"]
    return Coordinates(codebook_size=COORDINATES, downsample_factor=factor)


@MAKERS.register("boxes")
def make_boxes(stores: Sequence[CodeStore], label_names: Sequence[str], name: str) -> Condition:
    names = tuple(provenance_of(stores[0], name)["categories"])
    return Boxes(num_categories=len(names), category_names=names)


@MAKERS.register("keypoints")
def make_keypoints(stores: Sequence[CodeStore], label_names: Sequence[str], name: str) -> Condition:
    made = provenance_of(stores[0], name)
    names = tuple(made["names"] or ())
    return Keypoints(num_points=made["row_shape"][0], point_names=names)
