"""Where a window lies in a canvas, and what a batch says of it seen from the window.

A batch is a dict about the codes of B samples; of a whole canvas, or of one window:

- `codes` (B, h, w) int64; `known` (B, h, w) bool; one entry for each track of codes (`depth`, ...),
  (B, h, w) int64: grids, which are cut with the codes.
- `label` (B,) int64: the same for every window.
- `true_edges` (B, 3) bool: whether top, left and right are the whole grid's own.
- `place` (B, 4) int64: top row and left column in the whole grid, and its rows and columns.
- `boxes` (B, N, 5) float32: category, x0, y0, x1, y1, and `keypoints` (B, P, 2) float32: x, y, both
  in the frame: 0 .. 1 are its edges, and what is outside lies beyond them.
- `crop` (B, 4) float32: x0, y0, x1, y1 of the frame in the whole picture, in fractions of it.

A frame is where something is seen from: x0, y0, x1, y1 in fractions of another. A canvas's is its
own edges; a window's is as large as the windows of training, even where the canvas is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ops.windows import Window

NEITHER_GRID_NOR_FRAMED = ("label",)


def points_in(points: Tensor, frames: Tensor) -> Tensor:
    """Points (B, N, 2) x, y as seen from frames (B, 4), which are given where the points are."""
    first, last = frames[:, None, :2], frames[:, None, 2:]
    return (points - first) / (last - first)


def boxes_in(boxes: Tensor, frames: Tensor) -> Tensor:
    """Boxes (B, N, 5), category and two corners, likewise."""
    corners = points_in(boxes[..., 1:].reshape(len(boxes), -1, 2), frames)
    return torch.cat([boxes[..., :1], corners.reshape(*boxes.shape[:2], 4)], dim=-1)


def out_of(inner: Tensor, outer: Tensor) -> Tensor:
    """Frames (B, 4) given as seen from frames `outer` (B, 4), seen from where those are given."""
    first, last = outer[:, None, :2], outer[:, None, 2:]
    return (first + inner.reshape(-1, 2, 2) * (last - first)).flatten(1)


def frame_of(window: Window, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The frame (4,) of a window of a canvas (rows, columns), `size` (rows, columns) large."""
    rows, columns = canvas
    return torch.tensor(
        [
            window.column / columns,
            window.row / rows,
            (window.column + size[1]) / columns,
            (window.row + size[0]) / rows,
        ],
        dtype=torch.float64,
    )


def in_window(
    batch: Mapping[str, Any], window: Window, canvas: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """What the batch of a canvas (rows, columns) says of one window, whose frame is `size`.

    `size` (rows, columns) is that of the prior's windows, of which `window` has as much as the
    canvas has.
    """
    seen: dict[str, Any] = {}
    for name, value in batch.items():
        if value is None or name in NEITHER_GRID_NOR_FRAMED:
            seen[name] = value
        elif name in FRAMED:
            frame = frame_of(window, canvas, size).expand(len(value), -1)
            seen[name] = FRAMED[name](value.double(), frame).to(value.dtype)
        elif name == "place":
            seen[name] = value + torch.tensor([window.row, window.column, 0, 0])
        elif name == "true_edges":
            own = (window.row == 0, window.column == 0, window.column + window.columns == canvas[1])
            seen[name] = value & torch.tensor(own)
        else:
            seen[name] = value[:, *window.slices()]
    return seen


#: Entries that are seen from the frame: each as seen from another one.
FRAMED = {
    "boxes": boxes_in,
    "keypoints": points_in,
    "crop": lambda crops, frames: out_of(frames, crops),
}
