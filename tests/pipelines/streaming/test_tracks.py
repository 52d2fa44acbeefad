import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.streaming.tracks import as_entries, box_entries, frames_of

UNIT = st.floats(0, 1, allow_subnormal=False)
places = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 9), st.integers(0, 9))


@given(where=places, window=st.integers(1, 12), x=UNIT, y=UNIT)
def test_a_point_of_the_view_is_where_it_was_once_it_is_in_the_window(where, window, x, y):
    """In codes: a window's corner and the point's place in it are the point's place in the view."""
    top, left, below, beside = where
    rows, columns = top + window + below, left + window + beside
    frames = frames_of(torch.tensor([[top, left, rows, columns]]), window)
    stored = np.array([[[x, y]]], np.float32)
    column, row = (as_entries("keypoints", stored, frames)["keypoints"][0, 0] * window).tolist()
    assert np.isclose(left + column, stored[0, 0, 0] * columns, atol=1e-3)
    assert np.isclose(top + row, stored[0, 0, 1] * rows, atol=1e-3)


def test_points_that_are_not_there_stay_away():
    frames = frames_of(torch.tensor([[0, 1, 4, 6]]), 4)
    stored = np.full((1, 3, 2), np.nan, np.float32)
    assert as_entries("keypoints", stored, frames)["keypoints"].isnan().all()


def test_a_mirrored_view_is_a_part_of_the_mirrored_picture():
    """Of a picture twice as wide as high the left half, mirrored, of which a quarter is seen."""
    whole = [[1, 0, 0, 0.5, 1], [2, 0.25, 0.25, 0.75, 0.75], [-1, 0, 0, 0, 0]]
    frames = frames_of(torch.tensor([[0, 0, 8, 8]]), 4)
    condition_inputs = box_entries(torch.tensor([whole], dtype=torch.float64), frames)
    # In the mirrored picture the view is the right half, and the window its upper left quarter.
    assert condition_inputs["crop"].tolist() == [[0.5, 0, 0.75, 0.5]]
    assert condition_inputs["boxes"][0, 0].tolist() == [2, 0.5, 0.5, 1.5, 1.5]
    assert condition_inputs["boxes"][0, 1, 0] == -1


def test_grids_come_as_whole_numbers():
    stored = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    condition_inputs = as_entries("depth", stored, torch.empty(2, 4))["depth"]
    assert condition_inputs.dtype == torch.int64
    assert condition_inputs.tolist() == stored.tolist()
