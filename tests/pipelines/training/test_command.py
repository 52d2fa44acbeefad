from pathlib import Path

import pytest

from ops.config import ConfigError
from ops.files import LockedError, exclusive_lock
from pipelines.flags import TrainingFlags
from pipelines.training.command import run_training


def test_the_last_line_says_what_was_done_and_what_comes_next(tmp_path):
    def line(taken):
        flags, attempt = TrainingFlags(out=tmp_path), lambda run, ranks, on_step: taken
        return run_training(flags, 9, lambda folder, begun: None, attempt, {}, "encode")

    assert line(3) == f"{Path(tmp_path)}: 3 steps taken, 9 in all; encode"
    assert line(0) == f"{Path(tmp_path)}: nothing left to do, 9 in all; encode"


def test_nothing_is_written_for_a_device_that_is_not_there_or_in_another_process_s_run(tmp_path):
    def start(begun):
        raise AssertionError("nothing may be written")

    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="not on this machine"):
        run_training(TrainingFlags(out=out, device="cuda:99"), 9, start, start, {}, "encode")
    assert not out.exists()
    with exclusive_lock(out / ".lock"), pytest.raises(LockedError):
        run_training(TrainingFlags(out=out), 9, start, start, {}, "encode")
