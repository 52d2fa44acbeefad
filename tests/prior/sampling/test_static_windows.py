"""Static decoding with a sliding window against the plain sampler, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.windows import Grid, Wavefront
from prior.conditions.inputs import grid_prefix
from prior.models.presets import MODERN
from prior.sampling import sliding_window
from prior.sampling.sliding_window import sample_codes
from prior.sampling.static_windows import StaticWindowSampler
from prior.sampling.window_schedule import (
    DrawCall,
    ReadCall,
    most_rows_at_once,
    window_schedule,
)
from tests.conftest import examples
from tests.prior.sampling.test_sliding_window import (
    GRIDDED,
    PAPER,
    canvases,
    condition_grid,
    family,
    labelled,
    numbers_for,
)
from tests.prior.sampling.test_static_local import CHOICES, assert_same, forced_for

FAMILIES = {"paper": PAPER, "modern": family(**MODERN), "gridded": GRIDDED}


def prefix_for(name, canvas, copies, seed):
    window, _, rows, columns, _ = canvas
    if name == "gridded":
        return grid_prefix(condition_grid(seed, 2 * copies, rows, columns), window)
    return labelled(*[0, 2, -1, -1][: 2 * copies])


@given(
    name=st.sampled_from(sorted(FAMILIES)),
    canvas=canvases(),
    choice=st.sampled_from(CHOICES),
    kinds=st.lists(st.sampled_from(["none", "one", "each", "rows"]), min_size=1, max_size=2),
    parallel_rows=st.integers(1, 5),
    memory=st.sampled_from([0, 40_000, 4 << 30]),
    flush_every_rows=st.sampled_from([None, 1, 2, 3, 5]),
)
@settings(max_examples=examples(10), deadline=None)
def test_static_sampling_equals_the_plain_sampler(
    name, canvas, choice, kinds, parallel_rows, memory, flush_every_rows
):
    """One sampler draws several batches, and nothing of a batch is left in the next one."""
    (window, stride, rows, columns, seed), copies = canvas, 2 if choice.guides else 1
    model, decoder = FAMILIES[name][window]
    options = {"stride": stride, "cache_memory": memory, "flush_every_rows": flush_every_rows}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sliding_window.SEQUENCES_AT_ONCE, "cpu", 2 * copies * parallel_rows)
        sampler = StaticWindowSampler(model, choice, (2, rows, columns), **options)
        for number, kind in enumerate(kinds, seed):
            prefix = prefix_for(name, canvas, copies, number)
            numbers = numbers_for(2, rows, columns, number)
            forced = forced_for(kind, rows, columns, number)
            forced = forced if forced is None else forced.clamp(max=6)
            expected = sample_codes(
                decoder, prefix, lambda row, numbers=numbers: numbers[:, row], choice,
                (2, rows, columns), forced=forced, **options,
            )  # fmt: skip
            assert_same(sampler.sample(prefix, numbers, forced=forced), expected)


@given(
    canvas=canvases(),
    parallel_rows=st.integers(1, 12),
    known_share=st.sampled_from([0, 0.3, 0.7, 0.95]),
    flush_every_rows=st.sampled_from([None, 2, 5]),
)
@settings(max_examples=examples(100), deadline=None)
def test_a_step_draws_at_most_as_many_rows_as_foreseen(
    canvas, parallel_rows, known_share, flush_every_rows
):
    window, stride, rows, columns, seed = canvas
    grid = Grid(rows, columns, window, stride)
    random = torch.Generator().manual_seed(seed)
    known = (torch.rand(rows, columns, generator=random) < known_share).tolist()
    steps = [len(cells) for cells in Wavefront(grid, parallel_rows, known, flush_every_rows)]
    assert max(steps, default=0) <= most_rows_at_once(grid)


@pytest.mark.parametrize(
    ("side", "stride", "sequences", "prefix_length"), [(24, 4, 2, 3), (20, 1, 1, 1), (32, 8, 8, 2)]
)
def test_a_schedule_reads_each_token_once_and_pads_little(side, stride, sequences, prefix_length):
    grid = Grid(side, side, 16, stride)
    schedule = window_schedule(
        grid, prefix_length=prefix_length, parallel_rows=8,
        drawn_at_once=most_rows_at_once(grid), sequences=sequences, max_caches=10_000,
    )  # fmt: skip
    lengths, drawn, padded = {}, [], 0
    for call in schedule.calls:
        if isinstance(call, DrawCall):
            drawn += call.cells
        else:
            assert len(call.reads) <= call.windows
            padded += call.windows * call.tokens
        for read in call.reads:
            assert read.slot < schedule.slots
            before = lengths.get(read.slot, (None, 0))
            assert read.first == (before[1] if before[0] == read.window else 0)
            lengths[read.slot] = read.window, read.end
        if isinstance(call, DrawCall):
            for read, cell in zip(call.reads, call.cells, strict=True):
                assert read.end == prefix_length + read.window.offset_of(*cell)
    assert sorted(drawn) == [divmod(cell, side) for cell in range(side**2)]
    needed = sum(
        read.end - read.first
        for call in schedule.calls if isinstance(call, ReadCall)
        for read in call.reads
    )  # fmt: skip
    assert padded <= 2 * needed
