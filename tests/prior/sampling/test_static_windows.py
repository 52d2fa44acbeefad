"""Static decoding with a sliding window against the plain sampler, in float64."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prior.conditions.inputs import grid_prefix
from prior.models.presets import MODERN
from prior.sampling import sliding_window
from prior.sampling.sliding_window import sample_codes
from prior.sampling.static_windows import StaticWindowSampler
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
@settings(max_examples=40, deadline=None)
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
