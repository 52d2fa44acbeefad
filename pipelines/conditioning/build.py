"""The conditions of a prior, by name, sized for the code stores that it is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ops.config import ConfigError
from pipelines.conditioning.conditioning import CONDITIONINGS
from pipelines.store import CodeStore
from pipelines.tracks import Track
from prior.conditions import CONDITIONS, Conditions


def make_conditions(
    names: Sequence[str], stores: Sequence[CodeStore], label_names: Sequence[str]
) -> Conditions:
    """The conditions of those names, of which `label_names` are the classes.

    Raises ConfigError for a name twice or of no condition, StoreError where a store lacks a track.
    """
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--conditions names {name!r} twice.")
    parts = [CONDITIONINGS[name].build(stores, label_names) for name in names]
    return Conditions(parts, stores[0].provenance["image"]["codebook_size"])


def tracks_of(names: Sequence[str]) -> tuple[str, ...]:
    """The tracks of a store that training reads for the conditions of those names."""
    return tuple(name for name in names if name in CONDITIONS and name in CONDITIONS[name].entries)


def own_tokenizers(names: Sequence[str]) -> tuple[str, ...]:
    """Of those conditions the ones whose codes are of a tokenizer of their own."""
    kinds = track_kinds()
    return tuple(name for name in names if name in kinds and kinds[name].own_tokenizer)


def track_kinds() -> Mapping[str, type[Track]]:
    """The kinds of tracks by the name of their condition."""
    kinds = {name: CONDITIONINGS[name].track for name in CONDITIONINGS}
    return {name: kind for name, kind in kinds.items() if kind is not None}
