from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store import StoreError
from pipelines.streaming.tracks import as_entries, frames_of, open_tracks

UNIT = st.floats(0, 1, allow_subnormal=False)
places = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 9), st.integers(0, 9))


@given(where=places, window=st.integers(1, 12), x=UNIT, y=UNIT)
def test_point_in_the_window_is_where_it_is_in_the_view(where, window, x, y):
    """In codes: a window's corner and the point's place in it are the point's place in the view."""
    top, left, below, right = where
    rows, columns = top + window + below, left + window + right
    frames = frames_of(torch.tensor([[top, left, rows, columns]]), window)
    stored = np.array([[[x, y]]], np.float32)
    column, row = (as_entries("keypoints", stored, frames)["keypoints"][0, 0] * window).tolist()
    assert np.isclose(left + column, stored[0, 0, 0] * columns, atol=1e-3)
    assert np.isclose(top + row, stored[0, 0, 1] * rows, atol=1e-3)


def test_missing_points_stay_nan():
    frames = frames_of(torch.tensor([[0, 1, 4, 6]]), 4)
    stored = np.full((1, 3, 2), np.nan, np.float32)
    assert as_entries("keypoints", stored, frames)["keypoints"].isnan().all()


def test_crop_of_a_mirrored_view_is_in_fractions_of_the_mirrored_image():
    """A quarter of the left half, mirrored, of an image twice as wide as high."""
    whole = [[1, 0, 0, 0.5, 1], [2, 0.25, 0.25, 0.75, 0.75], [-1, 0, 0, 0, 0]]
    frames = frames_of(torch.tensor([[0, 0, 8, 8]]), 4)
    entries = as_entries("boxes", np.array([whole]), frames)
    # In the mirrored image the view is the right half, and the window its upper left quarter.
    assert entries["crop"].tolist() == [[0.5, 0, 0.75, 0.5]]
    assert entries["boxes"][0, 0].tolist() == [2, 0.5, 0.5, 1.5, 1.5]
    assert entries["boxes"][0, 1, 0] == -1


def test_grids_become_int64():
    stored = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    for name in ("depth", "a track of no condition"):
        codes = as_entries(name, stored, torch.empty(2, 4))[name]
        assert codes.dtype == torch.int64
        assert codes.tolist() == stored.tolist()


def stores_with(*made):
    """Stand-ins for stores that have a track `low_res` made in these ways."""
    tracks = [SimpleNamespace(name="low_res", provenance={"low_res": each}) for each in made]
    return [
        SimpleNamespace(path=f"store-{number}", track=lambda name, track=track: track)
        for number, track in enumerate(tracks)
    ]


def test_stores_whose_tracks_mean_different_things_are_refused():
    made = {"kind": "low_res", "fingerprint": "ab", "ratio": 2, "threads": 1}
    how = {**made, "threads": 4, "device": "cuda", "transform": {"seed": 1}}
    assert len(open_tracks(stores_with(made, how), ["low_res"])) == 2
    with pytest.raises(
        StoreError, match="store-1 is not made as that of store-0: ratio is 4, there 2"
    ):
        open_tracks(stores_with(made, {**how, "ratio": 4}), ["low_res"])
