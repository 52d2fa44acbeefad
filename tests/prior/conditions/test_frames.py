"""What a window sees of a canvas, against the obvious rule: through cells, one at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.windows import Window
from prior.conditions.frames import boxes_in, frame_of, in_window, out_of, points_in


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
        "true_edges": torch.tensor([[True, True, True], [True, False, False]]),
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
@settings(max_examples=50, deadline=None)
def test_a_window_sees_what_lies_in_it_where_it_lies(chosen, seed):
    window, (rows, columns), size = chosen
    batch = canvas_batch(rows, columns, seed)
    seen = in_window(batch, window, (rows, columns), (size, size))
    top, left, height, width = window
    for name in ("codes", "depth"):
        assert torch.equal(seen[name], batch[name][:, top : top + height, left : left + width])
    assert torch.equal(seen["label"], batch["label"])
    assert seen["place"][0].tolist() == [2 + top, 5 + left, 60, 70]
    assert seen["true_edges"][0].tolist() == [top == 0, left == 0, left + width == columns]
    assert seen["true_edges"][1].tolist() == [top == 0, False, False]

    def across(x):  # from fractions of the canvas, by cells, to fractions of the frame
        return (x * columns - left) / size

    def down(y):
        return (y * rows - top) / size

    for sample in range(2):
        for (category, *corners), found in zip(
            batch["boxes"][sample].tolist(), seen["boxes"][sample], strict=True
        ):
            x0, y0, x1, y1 = corners
            expected = [category, across(x0), down(y0), across(x1), down(y1)]
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
        for (x, y), found in zip(
            batch["keypoints"][sample].tolist(), seen["keypoints"][sample], strict=True
        ):
            expected = torch.tensor([across(x), down(y)])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    x0, y0, x1, y1 = batch["crop"][1].tolist()
    expected = [
        x0 + left / columns * (x1 - x0),
        y0 + top / rows * (y1 - y0),
        x0 + (left + size) / columns * (x1 - x0),
        y0 + (top + size) / rows * (y1 - y0),
    ]
    torch.testing.assert_close(seen["crop"][1], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_window_that_is_the_canvas_changes_nothing():
    batch = canvas_batch(6, 6)
    seen = in_window(batch, Window(0, 0, 6, 6), (6, 6), (6, 6))
    for name, value in batch.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["boxes", "keypoints", "crop", "codes", "place", "true_edges"])
def test_a_window_of_a_window_is_a_window(name):
    batch = canvas_batch(12, 15)
    first = in_window(batch, Window(2, 3, 8, 8), (12, 15), (8, 8))
    twice = in_window(first, Window(1, 4, 4, 4), (8, 8), (4, 4))
    once = in_window(batch, Window(3, 7, 4, 4), (12, 15), (4, 4))
    torch.testing.assert_close(twice[name], once[name], rtol=1e-5, atol=1e-5, equal_nan=True)


frames = st.tuples(*[st.floats(-1, 1)] * 2, *[st.floats(0.1, 2)] * 2).map(
    lambda it: torch.tensor([[it[0], it[1], it[0] + it[2], it[1] + it[3]]], dtype=torch.float64)
)


@given(outer=frames, inner=frames)
def test_seeing_through_two_frames_is_seeing_through_the_one_they_make(outer, inner):
    points = torch.rand(1, 5, 2, dtype=torch.float64)
    twice = points_in(points_in(points, outer), inner)
    torch.testing.assert_close(twice, points_in(points, out_of(inner, outer)))
    boxes = torch.rand(1, 5, 5, dtype=torch.float64)
    twice = boxes_in(boxes_in(boxes, outer), inner)
    torch.testing.assert_close(twice, boxes_in(boxes, out_of(inner, outer)))


def test_a_frame_is_as_large_as_the_windows_of_training_even_on_a_smaller_canvas():
    frame = frame_of(Window(0, 0, 2, 4), (2, 4), (8, 8))
    assert frame.tolist() == [0, 0, 2, 4]
