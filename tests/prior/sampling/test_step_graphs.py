import pytest
import torch

from prior.sampling.step_graphs import GraphCaptureError, GraphPool, IndexedStep


def recording_step(pool=None):
    """A step that appends the first index of its rows to a list."""
    seen = []
    return IndexedStep(lambda row: seen.append(int(row[0])), torch.tensor([-1, -1]), pool), seen


def test_a_step_reads_one_row_after_another_and_again_after_loading_others():
    step, seen = recording_step()
    for rows in ([5, 6, 7], [8, 9], [1, 2, 3, 4]):
        step.load(torch.tensor([[row, 0] for row in rows]))
        for _ in rows:
            step()
        assert seen == rows
        step.rewind()
        step()
        assert seen.pop() == rows[0]
        seen.clear()


def test_after_its_rows_a_step_reads_an_unused_one():
    """Warming up a graph uses the last row, whatever was loaded."""
    step, seen = recording_step()
    step.load(torch.tensor([[5, 0], [6, 0]]))
    for _ in range(3):
        step()
    assert seen == [5, 6, -1]


def test_a_failed_capture_is_an_error_that_says_why_and_what_to_do(monkeypatch):
    def captured(step, pool):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:  # as torch.cuda.graph ends a capture that failed
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(IndexedStep, "_captured", captured)
    monkeypatch.setattr(IndexedStep, "_warm_up", lambda step, stream: None)
    with pytest.raises(GraphCaptureError, match=r"not permitted.*static_decode=False"):
        recording_step(GraphPool(None, None))[0].capture()


@pytest.mark.parametrize("name", ["_warm_up", "_captured"])
def test_errors_that_are_not_of_the_capture_stay_what_they_are(name, monkeypatch):
    """A wrong shape is found while warming up; a GPU may be short of memory at any time."""

    def failing(step, *given):
        raise torch.OutOfMemoryError("none left") if name == "_captured" else RuntimeError("shape")

    monkeypatch.setattr(IndexedStep, "_warm_up", lambda step, stream: None)
    monkeypatch.setattr(IndexedStep, name, failing)
    with pytest.raises(RuntimeError) as found:
        recording_step(GraphPool(None, None))[0].capture()
    assert not isinstance(found.value, GraphCaptureError)


def test_cpus_need_no_graphs():
    step, seen = recording_step(GraphPool.on(torch.device("cpu")))
    step.load(torch.tensor([[5, 0]]))
    step.capture()
    assert seen == []
