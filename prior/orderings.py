"""Orders in which a prior predicts the codes of a window: the paper's permutations.

Esser et al., "Taming transformers for high-resolution image synthesis" (2021), appendix "On the
ordering of image representations", compares these seven; raster order had the lowest loss. The
published code defines them for square grids, some of them for even sides or powers of two only.
There these functions agree with it, and they extend it to any size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.config import Registry

ROW_MAJOR = "row-major"
PUBLISHED_SEED = 1  # seed of the published random order

ORDERINGS: Registry[Callable[[int, int, int], np.ndarray]] = Registry("ordering")
"""Functions of (rows, columns, seed) that return int64 (rows * columns,): the raster indices of all
cells in the order in which they are predicted. Only `random` uses the seed."""


@ORDERINGS.register(ROW_MAJOR)
def row_major(rows: int, columns: int, seed: int) -> np.ndarray:
    """Raster order: row by row, each from left to right."""
    return np.arange(rows * columns)


@ORDERINGS.register("alternate")
def alternate(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row by row, every other row from right to left, so that consecutive cells are adjacent."""
    cells = np.arange(rows * columns).reshape(rows, columns)
    cells[1::2] = cells[1::2, ::-1]
    return cells.ravel()


@ORDERINGS.register("spiral-in")
def spiral_in(rows: int, columns: int, seed: int) -> np.ndarray:
    """A spiral from the lower right corner, first up, then along the border and inwards."""
    remaining, sides = np.arange(rows * columns).reshape(rows, columns), []
    while remaining.size:
        sides.append(remaining[::-1, -1])  # up the right side
        remaining = np.rot90(remaining[:, :-1], -1)  # the next side becomes the right one
    return np.concatenate(sides)


@ORDERINGS.register("spiral-out")
def spiral_out(rows: int, columns: int, seed: int) -> np.ndarray:
    """From the centre outwards: spiral-in reversed."""
    return spiral_in(rows, columns, seed)[::-1].copy()


@ORDERINGS.register("z-curve")
def z_curve(rows: int, columns: int, seed: int) -> np.ndarray:
    """Morton order (1966) of the smallest enclosing square with a power of two as its side; cells
    outside the grid are left out."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    number = np.zeros_like(row)
    for bit in range(max(rows, columns).bit_length()):
        number |= (column >> bit & 1) << 2 * bit | (row >> bit & 1) << 2 * bit + 1
    return np.argsort(number)


@ORDERINGS.register("subsample")
def subsample(rows: int, columns: int, seed: int) -> np.ndarray:
    """Recursive subsampling: even rows and columns first, in this same order, then the cells one to
    the right of these, one below, and both."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    number = np.zeros_like(row)
    for bit in range(max(rows, columns).bit_length()):
        number = number << 2 | (row >> bit & 1) << 1 | column >> bit & 1
    return np.argsort(number)


@ORDERINGS.register("random")
def random(rows: int, columns: int, seed: int) -> np.ndarray:
    """One random order for all images; PUBLISHED_SEED gives the published one."""
    # RandomState, because numpy guarantees that its stream never changes.
    return np.random.RandomState(seed).permutation(rows * columns)


class TokenOrder(NamedTuple):
    """The order in which the cells of a canvas no larger than the window are predicted."""

    cells: Tensor  # (n,) int64, raster indices in the canvas
    window_positions: Tensor  # (n,) int64, increasing: the cells' positions in the window's order


def token_order(
    name: str, seed: int, window: int, rows: int, columns: int, device: torch.device
) -> TokenOrder:
    """The order of a canvas of rows x columns, which are at most `window`.

    A smaller canvas is the window's upper left part, and its cells keep the window's order, so that
    each has the position it had in training, and grid and box conditions are aligned as in
    training. The tensors are made once, and are not to be changed. Raises ConfigError for an
    unknown name.
    """
    return TokenOrder(*_token_order(name, seed, window, rows, columns, device))


# torch.compile cannot look into numpy's random numbers, so it takes the result as a constant. This
# is the mark of torch.compiler.assume_constant_result, which takes seconds to import the compiler.
_marked: Any = token_order
_marked._dynamo_marked_constant = True


@lru_cache(maxsize=64)
def _token_order(
    name: str, seed: int, window: int, rows: int, columns: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    row, column = np.divmod(ORDERINGS[name](window, window, seed), window)
    positions = np.flatnonzero((row < rows) & (column < columns))
    arrays = row[positions] * columns + column[positions], positions
    with torch.inference_mode(False):  # tensors of inference mode would be of no use in training
        cells, window_positions = (torch.tensor(array, device=device) for array in arrays)
    return cells, window_positions
