"""What a window has of a canvas's batch, against the obvious rule cell by cell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.windows import Window
from prior import Boxes, ClassLabel, Coordinates, Depth, Inpaint, Keypoints
from prior.conditions.frames import WindowView, boxes_in, in_window, out_of, points_in
from tests.conftest import examples

ENTRIES = {
    name: entry
    for condition in (Boxes, ClassLabel, Coordinates, Depth, Inpaint, Keypoints)
    for name, entry in condition.entries.items()
}


def canvas_batch(rows, columns, seed=0, count=2):
    random = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 3, 5, generator=random) * 2 - 0.5
    boxes[..., 0] = torch.tensor([1.0, 0.0, -1.0])
    points = torch.rand(count, 4, 2, generator=random)
    points[0, 0] = torch.nan
    return {
        "codes": torch.randint(9, (count, rows, columns), generator=random),
        "depth": torch.randint(5, (count, rows, columns), generator=random),
        "label": torch.tensor([3, -1]),
        "place": torch.tensor([[2, 5, 60, 70], [0, 0, rows, columns]]),
        "boxes": boxes,
        "keypoints": points,
        "crop": torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.6, 0.9]]),
    }


@st.composite
def windows(draw_from):
    rows, columns, size = (draw_from(st.integers(1, 9)) for _ in range(3))
    height, width = min(size, rows), min(size, columns)
    row = draw_from(st.integers(0, rows - height))
    column = draw_from(st.integers(0, columns - width))
    return Window(row, column, height, width), (rows, columns), size


@given(chosen=windows(), seed=st.integers(0, 99))
@settings(max_examples=examples(50), deadline=None)
def test_window_has_what_lies_in_it_at_its_place(chosen, seed):
    window, (rows, columns), size = chosen
    batch = canvas_batch(rows, columns, seed)
    found = in_window(ENTRIES, batch, window, (rows, columns), (size, size))
    top, left, height, width = window
    for name in ("codes", "depth"):
        assert torch.equal(found[name], batch[name][:, top : top + height, left : left + width])
    assert torch.equal(found["label"], batch["label"])
    assert found["place"][0].tolist() == [2 + top, 5 + left, 60, 70]

    def across(x):  # from fractions of the canvas, by cells, to fractions of the frame
        return (x * columns - left) / size

    def down(y):
        return (y * rows - top) / size

    for sample in range(2):
        for (category, *corners), box in zip(
            batch["boxes"][sample].tolist(), found["boxes"][sample], strict=True
        ):
            x0, y0, x1, y1 = corners
            expected = [category, across(x0), down(y0), across(x1), down(y1)]
            torch.testing.assert_close(box, torch.tensor(expected), rtol=1e-5, atol=1e-5)
        for (x, y), point in zip(
            batch["keypoints"][sample].tolist(), found["keypoints"][sample], strict=True
        ):
            expected = torch.tensor([across(x), down(y)])
            torch.testing.assert_close(point, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    x0, y0, x1, y1 = batch["crop"][1].tolist()
    expected = [
        x0 + left / columns * (x1 - x0),
        y0 + top / rows * (y1 - y0),
        x0 + (left + size) / columns * (x1 - x0),
        y0 + (top + size) / rows * (y1 - y0),
    ]
    torch.testing.assert_close(found["crop"][1], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_window_that_is_the_canvas_changes_nothing():
    batch = canvas_batch(6, 6)
    found = in_window(ENTRIES, batch, Window(0, 0, 6, 6), (6, 6), (6, 6))
    for name, value in batch.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["boxes", "keypoints", "crop", "codes", "place"])
def test_window_of_a_window_is_a_window(name):
    batch = canvas_batch(12, 15)
    first = in_window(ENTRIES, batch, Window(2, 3, 8, 8), (12, 15), (8, 8))
    twice = in_window(ENTRIES, first, Window(1, 4, 4, 4), (8, 8), (4, 4))
    once = in_window(ENTRIES, batch, Window(3, 7, 4, 4), (12, 15), (4, 4))
    torch.testing.assert_close(twice[name], once[name], rtol=1e-5, atol=1e-5, equal_nan=True)


frames = st.tuples(*[st.floats(-1, 1)] * 2, *[st.floats(0.1, 2)] * 2).map(
    lambda it: torch.tensor([[it[0], it[1], it[0] + it[2], it[1] + it[3]]], dtype=torch.float64)
)


@given(outer=frames, inner=frames)
def test_two_frames_in_turn_are_the_one_that_they_make(outer, inner):
    points = torch.rand(1, 5, 2, dtype=torch.float64)
    twice = points_in(points_in(points, outer), inner)
    torch.testing.assert_close(twice, points_in(points, out_of(inner, outer)))
    boxes = torch.rand(1, 5, 5, dtype=torch.float64)
    twice = boxes_in(boxes_in(boxes, outer), inner)
    torch.testing.assert_close(twice, boxes_in(boxes, out_of(inner, outer)))


def test_frame_has_the_size_of_training_windows_even_on_a_smaller_canvas():
    frame = WindowView(Window(0, 0, 2, 4), (2, 4), (8, 8)).frame
    assert frame.tolist() == [0, 0, 2, 4]
