"""Metrics as values with units, counts and intervals, and what is absent."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ops.config import ConfigError
from pipelines.evaluation.measurements import Measurements
from pipelines.flags import EvaluateFlags, check_kind


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(5, 2, 400)
    measured = Measurements(seed=3)
    measured.add_mean("psnr", values, "dB")
    (metric,) = measured.metrics
    assert metric.value == pytest.approx(values.mean())
    assert (metric.unit, metric.count) == ("dB", 400)
    half = 1.96 * 2 / 20
    assert metric.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04)


def test_intervals_depend_on_the_seed_and_the_name_alone():
    values = np.random.default_rng(0).normal(size=50)

    def interval(seed: int, name: str) -> tuple[float, float] | None:
        measured = Measurements(seed)
        measured.add_mean(name, values, "1")
        return measured.metrics[0].interval

    assert interval(0, "ssim") == interval(0, "ssim")
    assert interval(0, "ssim") != interval(1, "ssim")
    assert interval(0, "ssim") != interval(0, "psnr")


def test_a_weighted_mean_is_that_of_all_cells():
    measured = Measurements(seed=0)
    measured.add_mean("nats_per_code", [1.0, 4.0], "nats a code", weights=[3, 1])
    (metric,) = measured.metrics
    assert metric.value == pytest.approx((3 * 1 + 1 * 4) / 4)
    assert metric.interval == (1.0, 4.0)  # both samples may be the first, or the second


def test_what_is_not_finite_is_absent_and_the_file_is_plain_json():
    measured = Measurements(seed=0)
    measured.add_mean("psnr", [30.0, np.inf], "dB")
    measured.add_mean("lpips", [], "1")
    measured.add("fid", float("nan"), "squared distance", 2)
    measured.add("codes_used", 7.0, "codes", 9)
    text = json.dumps(measured.as_json({}, {}), allow_nan=False)
    found = json.loads(text)
    assert [line["name"] for line in found["absent"]] == ["psnr", "lpips", "fid"]
    assert "1 of 2 samples" in found["absent"][0]["reason"]
    assert found["metrics"] == {"codes_used": 7.0}
    assert found["values"] == [
        {"name": "codes_used", "value": 7.0, "unit": "codes", "count": 9, "interval": None}
    ]


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("tokenizer", {}, "needs --data, a folder of images"),
        ("prior", {}, "needs --data, a code store"),
        ("store", {"most": 3}, "--most is for tokenizer and prior and samples, not for store"),
        ("samples", {"image_size": 64}, "--image-size is for tokenizer, not for samples"),
    ],
)
def test_flags_of_another_kind_are_refused(tmp_path, kind, more, words):
    flags = EvaluateFlags(kind=kind, model="m", out=tmp_path / "metrics.json", **more)
    with pytest.raises(ConfigError, match=words):
        check_kind(flags)
