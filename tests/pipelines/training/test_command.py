from pathlib import Path

from pipelines.training.command import run_training
from pipelines.training.flags import TrainingFlags


def test_the_last_line_says_what_was_done_and_what_comes_next(tmp_path):
    def line(taken):
        flags, attempt = TrainingFlags(out=tmp_path), lambda ranks, on_step: taken
        return run_training(flags, 9, attempt, {}, "encode")

    assert line(3) == f"{Path(tmp_path)}: 3 steps taken, 9 in all; encode"
    assert line(0) == f"{Path(tmp_path)}: nothing left to do, 9 in all; encode"
