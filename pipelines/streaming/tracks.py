"""Further tracks of code stores in batches: rows that have all tracks, as entries of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.store import CodeStore, StoreError
from prior.conditions import CONDITIONS

IntArray = NDArray[np.int64]
#: Of a track's provenance, what may differ between stores that train one prior: how its rows were
#: made, not what their numbers mean.
HOW_MADE = (
    "transform", "tokenizer", "batch_size", "threads", "convolution", "compile", "device",
    "precision", "torch",
)  # fmt: skip


def open_tracks(stores: Sequence[CodeStore], names: Sequence[str]) -> list[dict[str, CodeStore]]:
    """The tracks of those names of each store.

    Raises StoreError where one is missing, or the numbers of two stores' tracks mean different
    things.
    """
    opened = [{name: store.track(name) for name in names} for store in stores]
    for name in names:
        first = _meaning(opened[0][name])
        for store, tracks in zip(stores, opened, strict=True):
            other = _meaning(tracks[name])
            if other != first:
                differing = "; ".join(
                    f"{key} is {other.get(key)}, there {first.get(key)}"
                    for key in {**first, **other}
                    if other.get(key) != first.get(key)
                )
                raise StoreError(
                    f"Track {name!r} of {store.path} is not made as that of {stores[0].path}: "
                    f"{differing}. Encode both with one tokenizer, or with the same categories."
                )
    return opened


def _meaning(track: CodeStore) -> dict[str, Any]:
    """The part of a track's provenance that decides what its numbers mean."""
    made = track.provenance[track.name]
    return {key: value for key, value in made.items() if key not in HOW_MADE}


def has_code_grids(track: CodeStore) -> bool:
    """Whether a track's rows are grids of codes, as the images' are, rather than plain numbers."""
    return "row_shape" not in track.provenance[track.name]


def rows_with_all(store: CodeStore, grid: str, tracks: Mapping[str, CodeStore]) -> IntArray:
    """The row numbers of `grid` that count and have every one of the tracks, ascending."""
    rows = store.ok_rows(grid)
    for track in tracks.values():
        there = track.ok_rows(grid) if grid in track.grids else np.empty(0, np.int64)
        rows = rows[np.isin(rows, there, assume_unique=True)]
    return rows


def frames_of(places: Tensor, window: int) -> Tensor:
    """Frames (N, 4), fractions of their grids, of windows at places (N, 4) as batches have them."""
    tops, lefts, rows, columns = places.double().unbind(1)
    return torch.stack(
        [lefts / columns, tops / rows, (lefts + window) / columns, (tops + window) / rows], dim=1
    )


def as_entries(name: str, stored: NDArray[Any], frames: Tensor) -> dict[str, Tensor]:
    """The entries of a batch that rows (N, ...) of the track `name` make, by the condition of that
    name; without such a condition the rows themselves.

    Grids of codes have been cut to the windows; rows of plain numbers are about the whole view, in
    which the windows have the frames (N, 4).
    """
    whole_numbers = np.issubdtype(stored.dtype, np.integer)
    rows = torch.from_numpy(stored.astype(np.int64 if whole_numbers else np.float64))
    return CONDITIONS[name].from_track(rows, frames) if name in CONDITIONS else {name: rows}
