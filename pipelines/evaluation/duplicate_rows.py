"""Rows of a store with the same codes, or nearly the same, as those of another image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.store_rows import Ints, RowBatch, RowLines

SHARED = 0.9  # of its codes, wherever they lie, that a near duplicate shares with the other image
#: Signatures of a row: those that share 0.9 have one in common with probability 0.99.
BANDS, HASHES = 8, 4
ROWS_AT_ONCE = 1024
EXAMPLES = 20  # pairs that are listed

Words = NDArray[np.uint64]


class Pair(NamedTuple):
    """The position of a row and of an earlier one that it is like, and the share they share."""

    position: int
    earlier: int
    shared: float


class Signatures:
    """MinHash signatures (Broder 1997) of each row's codes, 64 bytes a row.

    A row is the set of its codes, numbered where one occurs several times, so two rows' histograms
    decide how alike they are.
    """

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng([seed, BANDS, HASHES])
        odd, shifts, weights = random.integers(2**64, size=(3, BANDS, HASHES), dtype=np.uint64)
        self._factors, self._shifts, self._weights = odd | np.uint64(1), shifts, weights
        self._parts: list[Words] = []

    def update(self, batch: RowBatch) -> None:
        """Take the rows of a batch."""
        elements = _numbered(batch.codes).astype(np.uint64)
        found = np.zeros((len(elements), BANDS), np.uint64)
        for band in range(BANDS):
            for number in range(HASHES):
                # Wraps around: multiplication modulo 2**64 is the hash.
                hashed = elements * self._factors[band, number] + self._shifts[band, number]
                hashed ^= hashed >> np.uint64(32)
                hashed *= self._weights[band, number] | np.uint64(1)
                found[:, band] += hashed.min(axis=1) * self._factors[band, -1 - number]
        self._parts.append(found)

    def candidates(self, grids: Ints, copies: NDArray[np.bool_]) -> Ints:
        """Pairs (n, 2) of positions, the earlier last, that agree in a band and a grid.

        Each row is paired with the first of those that it agrees with; `copies` are left out.
        """
        signatures = np.concatenate(self._parts) if self._parts else np.zeros((0, BANDS), np.uint64)
        positions = np.flatnonzero(~copies)
        pairs = [np.zeros((0, 2), np.int64)]
        for column in signatures[positions].T:
            order = np.lexsort((positions, column, grids[positions]))
            words, where = column[order], grids[positions][order]
            starts = np.r_[True, (words[1:] != words[:-1]) | (where[1:] != where[:-1])]
            firsts = np.flatnonzero(starts)[np.cumsum(starts) - 1] if len(order) else order
            later = np.flatnonzero(firsts != np.arange(len(order)))
            pairs.append(positions[order[np.stack([later, firsts[later]], axis=1)]])
        return np.unique(np.concatenate(pairs), axis=0)


def exact_duplicates(lines: RowLines) -> list[Pair]:
    """Rows whose codes are those of an earlier row of the same grid, of another image.

    Rows with equal checksums in the index are read, the others are not.
    """
    words = lines.grid_numbers.astype(np.uint64) << np.uint64(32) | lines.checksums
    _, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[inverse] > 1)
    first: dict[bytes, int] = {}
    found = []
    for position, codes in _read(lines, candidates):
        grid = lines.grids[lines.grid_numbers[position]]
        digest = hashlib.sha256(grid.encode() + b"\0" + codes.tobytes()).digest()
        earlier = first.setdefault(digest, position)
        if lines.key(earlier) != lines.key(position):
            found.append(Pair(position, earlier, 1.0))
    return found


def near_duplicates(lines: RowLines, candidates: Ints) -> list[Pair]:
    """Of pairs of positions, those of two images that share SHARED of their codes or more."""
    found: dict[int, Pair] = {}
    for first in range(0, len(candidates), ROWS_AT_ONCE):
        pairs = candidates[first : first + ROWS_AT_ONCE]
        codes = lines.read(pairs.ravel())
        for number, (position, earlier) in enumerate(pairs.tolist()):
            shared = shared_codes(codes[2 * number], codes[2 * number + 1])
            alike = shared >= SHARED and lines.key(position) != lines.key(earlier)
            if alike and (position not in found or found[position].shared < shared):
                found[position] = Pair(position, earlier, shared)
    return list(found.values())


def add_duplicates(measured: Measurements, lines: RowLines, signatures: Signatures) -> None:
    """Add how many rows repeat the codes of another image, exactly or nearly, with examples."""
    exact = exact_duplicates(lines)
    copies = np.zeros(len(lines), np.bool_)
    copies[[pair.position for pair in exact]] = True
    near = near_duplicates(lines, signatures.candidates(lines.grid_numbers, copies))
    for name, pairs in (("exact_duplicates", exact), ("near_duplicates", near)):
        measured.add(name, float(len(pairs)), "rows", len(lines))
        measured.facts[name + "_listed"] = [
            {
                "key": lines.key(pair.position),
                "like": lines.key(pair.earlier),
                "shared": pair.shared,
            }
            for pair in sorted(pairs)[:EXAMPLES]
        ]
    measured.facts["near_duplicates_share"] = SHARED


def shared_codes(one: Ints, other: Ints) -> float:
    """The share of codes, (n,) each, that two rows have in common: their histograms' overlap."""
    size = int(max(one.max(), other.max())) + 1
    histograms = (np.bincount(one, minlength=size), np.bincount(other, minlength=size))
    return float(np.minimum(*histograms).sum() / len(one))


def _numbered(codes: Ints) -> Ints:
    """Distinct numbers for the codes (n, cells) of each row: the k-th occurrence of a code has
    that of the code and k."""
    count, cells = codes.shape
    ordered = np.sort(codes, axis=1)
    starts = np.ones(ordered.shape, np.bool_)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    places = np.broadcast_to(np.arange(cells), (count, cells))
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    numbered: Ints = ordered * cells + (places - first)
    return numbered


def _read(lines: RowLines, positions: Ints) -> Iterator[tuple[int, Ints]]:
    for first in range(0, len(positions), ROWS_AT_ONCE):
        chosen = positions[first : first + ROWS_AT_ONCE]
        yield from zip(chosen.tolist(), lines.read(chosen), strict=True)
