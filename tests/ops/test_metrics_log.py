import json
import os

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ops.disk_errors import DiskError
from ops.metrics_log import MetricsLog


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_appended_as_json_lines(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": 2.0})
        log.log(2, {"loss": 1.0, "psnr": 20.0})
        log.image(2, "samples", np.zeros((4, 4, 3), np.uint8))
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "psnr": 20.0}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_lines_of_steps_to_repeat_are_dropped_on_resume(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    with MetricsLog(tmp_path, after_step=2) as log:
        log.log(3, {"loss": 30.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_events_can_be_read_by_tensorboard(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(3, {"loss": 2.5})
        log.image(3, "samples", np.zeros((4, 4, 3), np.uint8))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 2.5)]
    assert [event.step for event in events.Images("samples")] == [3]


def test_a_disk_that_refuses_is_a_disk_error(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(DiskError, match="run"):
        MetricsLog(tmp_path / "run")
    log = MetricsLog(tmp_path / "other")
    os.close(log._events._file.fileno())  # every later write fails
    with pytest.raises(OSError, match="Bad file descriptor"):
        log.log(1, {"loss": 1.0})
    with pytest.raises(DiskError):
        log.__exit__(None, None, None)
