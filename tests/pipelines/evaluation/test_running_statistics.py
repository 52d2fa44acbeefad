"""Mean and covariance in batches, and the .npz that has them."""

from __future__ import annotations

import numpy as np
import pytest

from ops.config import UserError
from pipelines.evaluation.running_statistics import (
    RunningStatistics,
    read_statistics,
    write_statistics,
)


def test_batches_give_the_mean_and_covariance_of_all():
    features = np.random.default_rng(0).normal(1e4, 1, (23, 5)).astype(np.float32)
    running = RunningStatistics()
    for part in np.split(features, [0, 3, 4, 20]):
        running.update(part)
    found = running.result()
    exact = features.astype(np.float64)
    assert running.count == 23
    np.testing.assert_allclose(found.mu, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-12)


def test_statistics_come_back_as_they_were_written(tmp_path):
    running = RunningStatistics()
    running.update(np.random.default_rng(0).normal(size=(9, 3)))
    write_statistics(tmp_path / "s.npz", running.result())
    found = read_statistics(tmp_path / "s.npz")
    np.testing.assert_array_equal(found.sigma, running.result().sigma)
    np.testing.assert_array_equal(found.mu, running.result().mu)


@pytest.mark.parametrize(
    "arrays",
    [
        {"arr_0": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.zeros((2, 2))},
        {"mu": np.zeros(1), "sigma": np.full((1, 1), np.nan)},
        {"mu": np.array([None]), "sigma": np.zeros((1, 1))},
        {"mu": np.array(["a"]), "sigma": np.zeros((1, 1))},
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, arrays):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=r"s\.npz.*mu"):
        read_statistics(tmp_path / "s.npz")


def test_files_that_are_no_archives_are_refused(tmp_path):
    (tmp_path / "s.npz").write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"--reference takes an \.npz"):
        read_statistics(tmp_path / "s.npz")
    with pytest.raises(UserError, match="is not a file"):
        read_statistics(tmp_path / "missing.npz")
