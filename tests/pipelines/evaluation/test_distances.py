"""The metrics of features are those of torch-fidelity and torchmetrics on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from pipelines.evaluation import distances
from pipelines.evaluation.distances import (
    add_inception_score,
    add_kid,
    add_precision_and_recall,
    frechet_distance,
)
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.running_statistics import RunningStatistics


def features(seed: int, count: int, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + seed / 10


def test_fid_is_that_of_torch_fidelity():
    one, other = features(0, 40), features(5, 30)
    running = (RunningStatistics(), RunningStatistics())
    for statistics, values in zip(running, (one, other), strict=True):
        for part in values.split(7):
            statistics.update(part.numpy())
    expected = fid_statistics_to_metric(
        *(fid_features_to_statistics(values.double()) for values in (one, other)), False
    )
    found = frechet_distance(running[0].result(), running[1].result())
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-9)


def test_kid_is_that_of_torch_fidelity():
    one, other = features(0, 40), features(5, 30)
    measured = Measurements(seed=7)
    add_kid(measured, one, other)
    expected = kid_features_to_metric(
        one, other, kid_subset_size=30, kid_subsets=100, rng_seed=7, verbose=False
    )
    values = measured.values()
    assert values["kid"] == expected["kernel_inception_distance_mean"]
    assert values["kid_std"] == expected["kernel_inception_distance_std"]
    assert values["kid_subset_size"] == 30


def test_inception_score_is_that_of_torch_fidelity():
    logits = features(1, 43, 9) * 3
    measured = Measurements(seed=7)
    add_inception_score(measured, logits)
    expected = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=7)
    values = measured.values()
    assert values["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert values["inception_score_std"] == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_precision_and_recall_are_those_of_torch_fidelity(monkeypatch):
    generated, real = features(0, 50), features(9, 40)
    monkeypatch.setattr(distances, "DISTANCES_AT_ONCE", 50 * 7)  # several parts, as of large sets
    measured = Measurements(seed=0)
    add_precision_and_recall(measured, generated, real)
    expected = prc_features_to_metric(generated, real, verbose=False)
    values = measured.values()
    assert 0 < values["precision"] < 1
    assert values["precision"] == pytest.approx(expected["precision"])
    assert values["recall"] == pytest.approx(expected["recall"])


def test_precision_and_recall_are_those_of_a_plain_loop():
    generated, real = features(0, 20).numpy(), features(9, 15).numpy()
    measured = Measurements(seed=0)
    add_precision_and_recall(measured, torch.from_numpy(generated), torch.from_numpy(real))

    def share_within(points: np.ndarray, centres: np.ndarray) -> float:
        radii = [np.sort(np.linalg.norm(centres - one, axis=1))[3] for one in centres]
        inside = [
            any(
                np.linalg.norm(point - one) <= radius
                for one, radius in zip(centres, radii, strict=True)
            )
            for point in points
        ]
        return float(np.mean(inside))

    assert measured.values()["precision"] == pytest.approx(share_within(generated, real))
    assert measured.values()["recall"] == pytest.approx(share_within(real, generated))


def test_sets_that_are_too_small_are_absent():
    measured = Measurements(seed=0)
    add_kid(measured, features(0, 1), features(1, 9))
    add_inception_score(measured, features(0, 9))
    add_precision_and_recall(measured, features(0, 3), features(1, 9))
    assert not measured.metrics
    assert [absent.name for absent in measured.absent] == [
        "kid", "kid_std", "inception_score", "inception_score_std", "precision", "recall",
    ]  # fmt: skip
