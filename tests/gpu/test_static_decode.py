"""Static decoding on a GPU: graphs, the plain sampler, and no synchronization in the loop."""

import gc

import pytest
import torch

from ops.precision import PRECISIONS
from prior.sampling import static_local, static_windows
from prior.sampling.distributions import SamplingSettings, draw
from prior.sampling.step_graphs import IndexedStep
from tests.prior.sampling.test_static_decode import COLUMNS, INPUTS, ROWS, prior_for
from tests.prior.sampling.test_static_decode import LOOPS as LOOPS_AND_DRAWING

pytestmark = pytest.mark.gpu

LOOPS = [loop[:3] for loop in LOOPS_AND_DRAWING]
DRAWING = {"top_k": 6, "top_p": 0.95, "count": 2, "batch_size": 1, "seed": 5}


def sampled(architecture, condition, dtype, precision="float32", **options):
    """Codes and log-probabilities of a small prior on the GPU."""
    prior = prior_for(architecture, condition)
    prior.model.to("cuda", dtype)
    inputs = {"condition_inputs": INPUTS[condition]} if INPUTS[condition] else {}
    options = DRAWING | inputs | options | {"precision": precision}
    return prior.sample_with_log_probs(ROWS, COLUMNS, **options)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("architecture", "condition", "options"), LOOPS, ids=str)
def test_replayed_graphs_give_what_the_steps_give(
    architecture, condition, options, precision, monkeypatch
):
    replayed = sampled(architecture, condition, torch.float32, precision, **options)
    monkeypatch.setattr(IndexedStep, "capture", lambda step: None)
    eager = sampled(architecture, condition, torch.float32, precision, **options)
    assert torch.equal(replayed.codes, eager.codes)
    assert torch.equal(replayed.log_probabilities, eager.log_probabilities)


@pytest.mark.parametrize(("architecture", "condition", "options"), LOOPS, ids=str)
def test_static_decoding_is_the_default_and_equals_the_plain_sampler(
    architecture, condition, options, monkeypatch
):
    """In float64, where no rounding decides."""
    captured, capture = [], IndexedStep.capture
    monkeypatch.setattr(IndexedStep, "capture", lambda step: captured.append(1) or capture(step))
    static = sampled(architecture, condition, torch.float64, **options)
    assert captured
    plain = sampled(architecture, condition, torch.float64, static_decode=False, **options)
    assert torch.equal(static.codes, plain.codes)
    torch.testing.assert_close(static.log_probabilities, plain.log_probabilities)


@pytest.mark.parametrize(("architecture", "condition", "options"), LOOPS, ids=str)
def test_each_code_in_float32_is_that_of_the_plain_sampler(architecture, condition, options):
    """Given all codes before it, up to ties: of one code in a hundred rounding may decide."""
    codes = sampled(architecture, condition, torch.float32, **options).codes
    different = 0
    for row in range(ROWS):
        for column in range(COLUMNS):
            forced = codes.clone()
            forced[:, row, column] = -1
            again = sampled(
                architecture, condition, torch.float32,
                static_decode=False, forced=forced, **options,
            )  # fmt: skip
            different += int((again.codes != codes).sum())
    assert different <= codes.numel() / 100


def test_the_sampler_holds_no_memory_once_it_is_dropped():
    """Neither its buffers nor its graphs' pool; cuBLAS keeps a workspace for the stream."""
    sampled("local", "class", torch.float32)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        sampled("local", "class", torch.float32)
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


def test_a_single_row_of_many_codes_is_drawn_alike_each_time():
    logits, uniform = torch.randn(1, 1 << 16, device="cuda"), torch.rand(1, device="cuda")
    settings = SamplingSettings(top_p=0.99)
    first = draw(logits, uniform, settings)
    for _ in range(50):
        again = draw(logits, uniform, settings)
        assert torch.equal(again.codes, first.codes)
        assert torch.equal(again.log_probabilities, first.log_probabilities)


@pytest.mark.parametrize(("architecture", "condition", "options"), LOOPS, ids=str)
def test_nothing_in_the_loop_waits_for_the_gpu(architecture, condition, options, monkeypatch):
    run, calls = static_local.run_calls, []

    def checked(*arguments):
        calls.append(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for module in (static_local, static_windows):
        monkeypatch.setattr(module, "run_calls", checked)
    sampled(architecture, condition, torch.float32, **options)
    monkeypatch.setattr(IndexedStep, "capture", lambda step: None)
    sampled(architecture, condition, torch.float32, **options)
    assert len(calls) == 4  # two batches, replayed and not
