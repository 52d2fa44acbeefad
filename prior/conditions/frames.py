"""Coordinate frames, and what a window has of each entry of a canvas's batch.

A frame is a rectangle x0, y0, x1, y1 in fractions of another one. Points are given in fractions of
a frame: 0 .. 1 from edge to edge, less or more outside. A canvas's frame is its own edges. A
window's frame is as large as the windows of training, even where the canvas is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops.windows import Window


class WindowView(NamedTuple):
    """A window of a canvas (rows, columns); `size` (rows, columns) is that of its frame."""

    window: Window
    canvas: tuple[int, int]
    size: tuple[int, int]

    @property
    def frame(self) -> Tensor:
        """The window's frame (4,) float64 in the canvas."""
        rows, columns = self.canvas
        return torch.tensor(
            [
                self.window.column / columns,
                self.window.row / rows,
                (self.window.column + self.size[1]) / columns,
                (self.window.row + self.size[0]) / rows,
            ],
            dtype=torch.float64,
        )


class Entry(NamedTuple):
    """The form of an entry of a batch, and how a window is cut from it."""

    axes: int  # of one sample: the entry of a batch has one more
    #: From the entry (B, ...) of a canvas that of a window; None where it is the same.
    in_window: Callable[[Tensor, WindowView], Tensor] | None = None


def cut(grid: Tensor, view: WindowView) -> Tensor:
    """The window of a grid (B, rows, columns)."""
    return grid[:, *view.window.slices()]


def framed(inside: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, WindowView], Tensor]:
    """From inside(values, frames), which is given frames (B, 4), what an Entry takes."""

    def in_window(values: Tensor, view: WindowView) -> Tensor:
        frames = view.frame.expand(len(values), -1)
        return inside(values.double(), frames).to(values.dtype)

    return in_window


#: One value for each code.
GRID = Entry(2, cut)


def in_window(
    entries: Mapping[str, Entry],
    batch: Mapping[str, Any],
    window: Window,
    canvas: tuple[int, int],
    size: tuple[int, int],
) -> dict[str, Any]:
    """The batch of one window from that of a canvas (rows, columns), of `entries` or some of them.

    `size` (rows, columns) is that of the prior's windows, of which `window` has as much as the
    canvas has.
    """
    view, found = WindowView(window, canvas, size), {}
    for name, value in batch.items():
        change = entries[name].in_window
        found[name] = value if change is None or value is None else change(value, view)
    return found


def points_in(points: Tensor, frames: Tensor) -> Tensor:
    """Points (B, N, 2) x, y, in fractions of frames (B, 4) that are given where the points are."""
    first, last = frames[:, None, :2], frames[:, None, 2:]
    return (points - first) / (last - first)


def boxes_in(boxes: Tensor, frames: Tensor) -> Tensor:
    """Boxes (B, N, 5), category and two corners, likewise."""
    corners = points_in(boxes[..., 1:].reshape(len(boxes), -1, 2), frames)
    return torch.cat([boxes[..., :1], corners.reshape(*boxes.shape[:2], 4)], dim=-1)


def out_of(inner: Tensor, outer: Tensor) -> Tensor:
    """Frames `inner` (B, 4), in fractions of frames `outer` (B, 4), where those are given."""
    first, last = outer[:, None, :2], outer[:, None, 2:]
    return (first + inner.reshape(-1, 2, 2) * (last - first)).flatten(1)
