"""Tracks of code stores as training wants them: cut like codes, boxes in the window's frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.store import CodeStore, StoreError
from prior.conditions import boxes_in, out_of, points_in

IntArray = NDArray[np.int64]
BOXES, KEYPOINTS = "boxes", "keypoints"
NO_GRIDS = (BOXES, KEYPOINTS)  # tracks of places in the picture, not of codes
#: Of a track's provenance, what its numbers mean.
LANGUAGE = ("fingerprint", "ratio", "categories", "row_shape", "names")
#: Conditions that are told by the track of their name.
TRACK_CONDITIONS = ("segmentation", "depth", "low_res", *NO_GRIDS)


def open_tracks(stores: Sequence[CodeStore], names: Sequence[str]) -> list[dict[str, CodeStore]]:
    """The tracks of those names of each store.

    Raises StoreError where one is missing, or two stores' tracks do not speak one language.
    """
    opened = [{name: store.track(name) for name in names} for store in stores]
    for name in names:
        first = _language(opened[0][name], name)
        for store, tracks in zip(stores, opened, strict=True):
            if _language(tracks[name], name) != first:
                raise StoreError(
                    f"Track {name!r} of {store.path} is not made as that of {stores[0].path}: "
                    f"{_language(tracks[name], name)}, {first}. Encode both with one tokenizer, or "
                    "with the same categories."
                )
    return opened


def _language(track: CodeStore, name: str) -> dict[str, Any]:
    """What decides what a track's numbers mean."""
    made = track.provenance[name]
    return {key: made[key] for key in LANGUAGE if key in made}


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
    """The entries of a batch that rows of the track `name` make, by the windows' frames (N, 4).

    Of a grid of codes they have been cut to the window; boxes (N, 1 + M, 5) and keypoints
    (N, P, 2) are the whole view's.
    """
    if name == BOXES:
        return box_entries(torch.from_numpy(stored).double(), frames)
    if name == KEYPOINTS:
        return {name: points_in(torch.from_numpy(stored).double(), frames).float()}
    return {name: torch.from_numpy(stored.astype(np.int64))}


def box_entries(stored: Tensor, frames: Tensor) -> dict[str, Tensor]:
    """`boxes` (N, M, 5) in the windows' frames, and `crop` (N, 4): what they show of the image.

    A mirrored view is a part of the mirrored image.
    """
    mirrored, view = stored[:, :1, 0], stored[:, 0, 1:]
    left, right = 1 - view[:, 2:3], 1 - view[:, 0:1]
    view = torch.where(
        mirrored > 0, torch.cat([left, view[:, 1:2], right, view[:, 3:4]], dim=1), view
    )
    return {
        BOXES: boxes_in(stored[:, 1:], frames).float(),
        "crop": out_of(frames, view).float(),
    }
