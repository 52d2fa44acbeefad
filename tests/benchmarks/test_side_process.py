import os
from functools import partial

import pytest
from side_process import Side


def record_steps(base):
    """Work whose result is the step's number plus `base`, and the process that ran it."""
    return lambda step: (base + step, os.getpid())


@pytest.mark.parametrize("in_process", [True, False])
def test_a_side_counts_and_times_its_steps(in_process):
    side = Side(partial(record_steps, 10), threads=1, in_process=in_process)
    side.run()
    side.run(steps=3)
    (result, process), idle, peak = side.stop()
    assert result == 13
    assert (process == os.getpid()) == in_process
    assert len(side.seconds) == 2
    assert 0 < idle <= peak
