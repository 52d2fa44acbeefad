"""Mean and covariance of features, a batch at a time."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ops.config import UserError
from ops.files import write_bytes

Array = NDArray[np.float64]


class Statistics(NamedTuple):
    """The Gaussian of some features: mean (D,) and covariance (D, D), float64."""

    mu: Array
    sigma: Array


class RunningStatistics:
    """Mean and covariance of all features so far; memory for one covariance, whatever their number.

    Sums are of differences to the first batch's mean, so that a mean far from zero costs no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin: Array | None = None

    def update(self, features: NDArray[Any]) -> None:
        """Add features (n, D)."""
        found = np.asarray(features, np.float64)
        if not len(found):
            return
        if self._origin is None:
            self._origin = found.mean(axis=0)
            self._sum = np.zeros(found.shape[1])
            self._products = np.zeros((found.shape[1], found.shape[1]))
        found = found - self._origin
        self._sum += found.sum(axis=0)
        self._products += found.T @ found
        self.count += len(found)

    def result(self) -> Statistics:
        """The statistics, the covariance divided by n - 1; needs two features at least."""
        assert self._origin is not None
        assert self.count >= 2
        mean = self._sum / self.count
        sigma = (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Statistics(self._origin + mean, sigma)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write mu and sigma as the .npz that read_statistics and the field's evaluators read."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=statistics.mu, sigma=statistics.sigma)
    write_bytes(path, buffer.getvalue())


def read_statistics(path: Path) -> Statistics:
    """mu and sigma of an .npz; other arrays in it are not read.

    Raises UserError where it cannot be read, or they are no mean and covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise UserError(f"--reference {path} is not a file.") from None
    except (AttributeError, EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} has no statistics mu and sigma ({error}). --reference takes an .npz that has "
            "both, such as a reference batch of ADM's evaluator."
        ) from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{path}: mu {mu.shape} and sigma {sigma.shape} are no mean (D,) and covariance (D, D)."
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: mu or sigma has numbers that are not finite.")
    return Statistics(mu, sigma)
