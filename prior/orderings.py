"""Orders in which a prior may foretell the cells of a window: the paper's Permuter.

A transformer reads a sequence, and nothing says that a grid must become one row by row. Esser et
al., "Taming transformers for high-resolution image synthesis" (2021), section "On the ordering of
image representations", with a figure of these seven and of the loss that each leads to; row by row
did best. Where the published code has one it is for square grids, some of an even side or of a
power of two alone: there these are the same, and they go on to any other size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.config import Registry

ROW_MAJOR = "row-major"
PUBLISHED_SEED = 1  # of the published random order

ORDERINGS: Registry[Callable[[int, int, int], np.ndarray]] = Registry("ordering")
"""Each is a function of (rows, columns, seed): int64 (rows * columns,), the raster numbers of all
cells of such a grid in the order in which they are foretold. Only the random one heeds the seed."""


@ORDERINGS.register(ROW_MAJOR)
def row_major(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row by row, each from left to right."""
    return np.arange(rows * columns)


@ORDERINGS.register("alternate")
def alternate(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row by row, every other one from right to left, so that neighbours follow each other."""
    cells = np.arange(rows * columns).reshape(rows, columns)
    cells[1::2] = cells[1::2, ::-1]
    return cells.ravel()


@ORDERINGS.register("spiral-in")
def spiral_in(rows: int, columns: int, seed: int) -> np.ndarray:
    """Around the border from the lower right corner, up first, and on inwards."""
    rest, turns = np.arange(rows * columns).reshape(rows, columns), []
    while rest.size:
        turns.append(rest[::-1, -1])  # up the right side; what is left is turned to have its next
        rest = np.rot90(rest[:, :-1], -1)  # side there
    return np.concatenate(turns)


@ORDERINGS.register("spiral-out")
def spiral_out(rows: int, columns: int, seed: int) -> np.ndarray:
    """From the middle outwards: spiral-in backwards."""
    return spiral_in(rows, columns, seed)[::-1].copy()


@ORDERINGS.register("z-curve")
def z_curve(rows: int, columns: int, seed: int) -> np.ndarray:
    """Quarter after quarter of the smallest square of a power of two, and so within each (Morton
    1966); what lies beyond the grid is passed over."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    number = np.zeros_like(row)
    for bit in range(max(rows, columns).bit_length()):
        number |= (column >> bit & 1) << 2 * bit | (row >> bit & 1) << 2 * bit + 1
    return np.argsort(number)


@ORDERINGS.register("subsample")
def subsample(rows: int, columns: int, seed: int) -> np.ndarray:
    """Every other cell of every other row, coarse ones among them first, then those that are one
    aside, one below, and both."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    number = np.zeros_like(row)
    for bit in range(max(rows, columns).bit_length()):
        number = number << 2 | (row >> bit & 1) << 1 | column >> bit & 1
    return np.argsort(number)


@ORDERINGS.register("random")
def random(rows: int, columns: int, seed: int) -> np.ndarray:
    """One order for all pictures, thrown by `seed`; that of PUBLISHED_SEED is the published one."""
    # RandomState, because numpy promises that its numbers will never change.
    return np.random.RandomState(seed).permutation(rows * columns)


class TokenOrder(NamedTuple):
    """The order in which a canvas that fits into a window is foretold."""

    cells: Tensor  # (n,) int64, raster numbers in the canvas
    places: Tensor  # (n,) int64, rising: where each stands in the whole window's order


def token_order(
    name: str, seed: int, window: int, rows: int, columns: int, device: torch.device
) -> TokenOrder:
    """The course of a canvas of rows x columns, which are `window` at most.

    A canvas that is smaller is the window's upper left part, and its cells keep the window's order:
    each is foretold from the place at which it was learned, and conditions that are grids or boxes
    lie as they do in training.
    """
    both = _token_order(name, seed, window, rows, columns)
    return TokenOrder(*(torch.as_tensor(numbers, device=device) for numbers in both))


@lru_cache(maxsize=64)
def _token_order(
    name: str, seed: int, window: int, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    row, column = np.divmod(ORDERINGS[name](window, window, seed), window)
    places = np.flatnonzero((row < rows) & (column < columns))
    return row[places] * columns + column[places], places
