import math

import numpy as np
import pytest

from pipelines.studies.runs import Run
from pipelines.studies.study import Column, Study
from pipelines.studies.summary import summarise, table


class ExampleStudy(Study):
    title, paper = "example", "nothing"
    variants = ("plain", "fancy")
    columns = (
        Column("nll", "nats a code", 3),
        Column("speed", "times plain's", 1, relative=True),
        Column("codes", "codes", 0),
        Column("absent", "not measured"),
    )

    def settings(self, context):
        return {}

    def measure(self, context, variant, seed):
        raise AssertionError


def runs_of(metrics):
    """Runs from {variant: [metrics of seed 0, of seed 1, ...]}."""
    return [
        Run(variant, seed, values, 1.0, "2026-11-24")
        for variant, of_seeds in metrics.items()
        for seed, values in enumerate(of_seeds)
    ]


def test_summary_has_means_and_standard_deviations():
    random = np.random.default_rng(0)
    nll, speeds = random.uniform(1, 9, (2, 2, 5))
    metrics = {
        variant: [{"nll": nll[v, s], "speed": speeds[v, s]} for s in range(5)]
        for v, variant in enumerate(ExampleStudy.variants)
    }
    cells = summarise(ExampleStudy(), runs_of(metrics))
    for v, variant in enumerate(ExampleStudy.variants):
        plain = sum(speeds[0]) / 5
        for name, values in (("nll", nll[v]), ("speed", speeds[v] / plain)):
            mean = sum(values) / 5
            variance = sum((value - mean) ** 2 for value in values) / 4
            assert cells[variant][name].mean == pytest.approx(mean)
            assert cells[variant][name].spread == pytest.approx(math.sqrt(variance))
            assert cells[variant][name].values == pytest.approx(list(values))


def test_table_has_a_row_for_each_variant_and_measured_columns_only():
    metrics = {
        "plain": [{"nll": 4.0, "speed": 2.0, "codes": 7.0}, {"nll": 5.0, "speed": 2, "codes": 7}],
        "fancy": [{"nll": 3.0, "speed": 3.0}, {"nll": 3.5, "speed": 5.0}],
    }
    assert table(ExampleStudy(), runs_of(metrics)).splitlines() == [
        "| variant | nats a code | times plain's | codes |",
        "| --- | --- | --- | --- |",
        "| plain | 4.500 ± 0.707 | 1.0 | 7 |",
        "| fancy | 3.250 ± 0.354 | 2.0 ± 0.7 | – |",
    ]


def test_one_seed_has_no_spread():
    metrics = {"plain": [{"nll": 4.25}], "fancy": [{"nll": 1234.5}]}
    assert table(ExampleStudy(), runs_of(metrics)).splitlines()[2:] == [
        "| plain | 4.250 |",
        "| fancy | 1,234.500 |",
    ]
