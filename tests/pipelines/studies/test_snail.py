"""The study of PixelSNAIL: equal steps and equal time."""

import json

import pytest

from ops.files import write_json
from pipelines import study as command
from pipelines.studies import snail
from pipelines.studies.snail import TIMES, seconds_a_step
from tests.pipelines.test_study import flags_of, images

__all__ = ["images"]


def test_each_recipes_step_is_timed(monkeypatch):
    monkeypatch.setattr(snail, "SKIPPED_STEPS", 0)
    monkeypatch.setattr(snail, "TIMED_STEPS", 1)
    found = seconds_a_step(["study", "study-snail"])
    assert set(found) == {"study", "study-snail"}
    assert all(seconds > 0 for seconds in found.values())


@pytest.mark.slow
def test_snail_study_completes(images, tmp_path):
    write_json(tmp_path / TIMES, {"study": 0.6, "study-snail": 0.2})
    assert command.main(flags_of("snail", images, tmp_path, "--seeds", "0")) == 0
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    metrics = {name: {f: c["mean"] for f, c in cells.items()} for name, cells in summary.items()}
    steps = [metrics[name]["steps"] for name in ("transformer", "snail", "snail-equal-time")]
    assert steps == [2, 2, 6]
    seconds = metrics["snail-equal-time"]["cpu_seconds"], metrics["transformer"]["cpu_seconds"]
    assert seconds[0] == pytest.approx(seconds[1])
    weights = [metrics[name]["millions_of_weights"] for name in ("transformer", "snail")]
    assert weights[0] == pytest.approx(weights[1], rel=0.03)
