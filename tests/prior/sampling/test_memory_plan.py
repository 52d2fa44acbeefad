"""Batch and cache memory by a GPU's memory: what is planned fits, and grows with the memory."""

import pytest
import torch

from prior import GPTConfig, LocalConfig, make_model, preset_config
from prior.sampling import DEFAULT_CACHE_MEMORY, LARGEST_DEFAULT_BATCH, memory_plan
from prior.sampling.local import RowRing
from prior.sampling.memory_plan import plan_memory

SIZES = {"codebook_size": 16384, "condition_vocab_size": 1, "condition_length": 1}
LARGE = {"num_layers": 24, "num_heads": 16, "width": 1024}
GPT = GPTConfig(**SIZES, **LARGE)
LOCAL = LocalConfig(**SIZES, **LARGE)
REQUEST = {
    "shape": (64, 64), "stride": None, "guides": False, "precision": "bfloat16", "count": 1000,
}  # fmt: skip


def plan(config, gib, **changed):
    return plan_memory(config, gib << 30, **REQUEST | changed)


@pytest.mark.parametrize("config", [GPT, LOCAL], ids=["gpt", "local"])
def test_more_memory_gives_no_smaller_a_batch_and_no_more_than_are_wanted(config):
    batches = [plan(config, gib).batch_size for gib in (1, 8, 16, 24, 40, 80, 140)]
    assert batches == sorted(batches)
    assert batches[0] == 1
    assert batches[-1] == memory_plan.LARGEST_BATCH
    assert plan(config, 80, count=5).batch_size == 5
    assert plan(config, 80, count=1).batch_size == 1


@pytest.mark.parametrize("config", [GPT, LOCAL], ids=["gpt", "local"])
def test_float32_guidance_and_large_canvases_take_more(config):
    least = plan(config, 16)
    for harder in ({"guides": True}, {"precision": "float32"}, {"shape": (2048, 2048)}):
        assert plan(config, 16, **harder).batch_size <= least.batch_size
    hardest = {"guides": True, "precision": "float32", "shape": (2048, 2048)}
    assert plan(config, 16, **hardest).batch_size < least.batch_size


def test_codes_by_levels_leave_more_for_caches():
    levels = GPTConfig(**SIZES, **LARGE, code_levels=(16, 32, 32))
    assert plan(levels, 24).cache_memory > plan(GPT, 24).cache_memory


def test_caches_take_whole_gibibytes_of_what_is_left():
    for gib in (24, 80):
        cache_memory = plan(GPT, gib).cache_memory
        assert 0 < cache_memory < gib << 30
        assert cache_memory % (1 << 30) == 0
        assert plan(GPT, gib, count=1).cache_memory >= cache_memory


def test_a_code_of_levels_is_drawn_level_by_level():
    """A vocabulary of millions takes no more memory than its levels do."""
    levels = {"codebook_size": 1 << 20, "code_levels": (1024, 1024)}
    config = LocalConfig(**SIZES | levels, **LARGE)
    assert plan(config, 24).batch_size >= plan(LOCAL, 24).batch_size


def test_a_pixelsnail_has_the_usual_defaults():
    config = preset_config("tiny-snail", **SIZES, window=16)
    assert plan(config, 80) == (LARGEST_DEFAULT_BATCH, DEFAULT_CACHE_MEMORY)


def test_the_rows_that_a_local_sampler_keeps_are_counted_exactly():
    """On a GPU's number of rows; a CPU samples fewer at once."""
    config = LocalConfig(**SIZES | {"codebook_size": 64}, num_layers=2, num_heads=2, width=32)
    rows = memory_plan.parallel_rows_for(40, config.radius, 3, memory_plan.CUDA)
    ring = RowRing(
        make_model(config), torch.zeros(3, 1, dtype=torch.int64), 41, rows + config.radius
    )
    near = 1 + len(ring.offsets)
    gathered = 3 * rows * near * 2 * config.width * 4
    assert memory_plan._step_bytes(config, 3, (40, 40), 4) == ring.nbytes + gathered
