"""Metrics as they are written: typed values, means with intervals, and what is absent and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
CONFIDENCE = 0.95
RESAMPLED_AT_ONCE = 1 << 20  # numbers


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure, `value` in `unit`, measured on `count` samples.

    `interval` are the ends of the mean's 95 % bootstrap interval; None where the figure is no mean
    over samples.
    """

    name: str
    value: float
    unit: str
    count: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """A metric that could not be measured, and why."""

    name: str
    reason: str


class Measurements:
    """What an evaluation found: metrics in order, absent ones, and facts that are no metrics."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.metrics: list[Metric] = []
        self.absent: list[Absent] = []
        self.facts: dict[str, Any] = {}

    def add(self, name: str, value: float, unit: str, count: int) -> None:
        """Add a figure; one that is not finite is absent."""
        if math.isfinite(value):
            self.metrics.append(Metric(name, value, unit, count))
        else:
            self.absent.append(Absent(name, f"it is {value}"))

    def add_mean(
        self, name: str, values: ArrayLike, unit: str, weights: ArrayLike | None = None
    ) -> None:
        """Add the mean, with its interval, of a figure of each sample, (n,); `weights` are (n,).

        Absent where there is no value, or one is not finite, as the PSNR of equal images.
        """
        found = np.asarray(values, np.float64)
        odd = int((~np.isfinite(found)).sum())
        if not found.size:
            self.absent.append(Absent(name, "nothing to measure it on"))
        elif odd:
            self.absent.append(Absent(name, f"it is not finite for {odd} of {found.size} samples"))
        else:
            share = np.ones_like(found) if weights is None else np.asarray(weights, np.float64)
            mean = float(np.average(found, weights=share))
            interval = bootstrap_interval(found, share, self.seed, name)
            self.metrics.append(Metric(name, mean, unit, found.size, interval))

    def lack(self, names: Iterable[str], reason: str) -> None:
        """Note that these metrics are absent."""
        self.absent += [Absent(name, reason) for name in names]

    def values(self) -> dict[str, Any]:
        """Facts and the values of metrics by name."""
        return {**self.facts, **{metric.name: metric.value for metric in self.metrics}}

    def as_json(self, settings: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, Any]:
        """The content of metrics.json.

        `metrics` are the plain values by name, `values` the same figures with interval, unit and
        count.
        """
        return {
            "metrics": self.values(),
            "values": [asdict(metric) for metric in self.metrics],
            "absent": [asdict(absent) for absent in self.absent],
            "settings": dict(settings),
            **versions,
        }


def bootstrap_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], seed: int, name: str
) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of a weighted mean over samples; None of one sample.

    The resamples depend on `seed` and the metric's name only, so the figures of one metric on two
    models are resampled alike.
    """
    if len(values) < 2:
        return None
    # Imported here: it takes as long as all else that a command imports.
    from scipy.stats import bootstrap

    def mean(sums: Any, shares: Any, axis: int) -> Any:
        return sums.sum(axis=axis) / shares.sum(axis=axis)

    found = bootstrap(
        (values * weights, weights),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, RESAMPLED_AT_ONCE // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng([seed, *name.encode()]),
    ).confidence_interval
    return float(found.low), float(found.high)
