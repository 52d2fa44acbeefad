"""Static decoding from a LocalGPT against the plain sampler, in float64, and what its loop does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prior.sampling import local as local_sampling
from prior.sampling.distributions import SamplingSettings
from prior.sampling.local import sample_locally
from prior.sampling.static_local import StaticLocalSampler
from tests.conftest import examples
from tests.prior.models.test_local_gpt import CODES, random_model
from tests.prior.sampling.test_local import numbers_for

#: Sizes by their condition tokens, condition grids, radius and radius of the grids' convolution.
MODELS = {
    (length, grids, radius, around): random_model(
        condition_length=length, condition_grids=grids, radius=radius, depthwise_context=around
    )
    for length, grids, radius, around in [
        (2, 0, 1, 0), (1, 0, 2, 0), (2, 0, 3, 0), (0, 1, 2, 2), (2, 1, 2, 0), (1, 2, 1, 1),
    ]
}  # fmt: skip
CHOICES = [
    SamplingSettings(),
    SamplingSettings(temperature=0),
    SamplingSettings(temperature=0.7, top_k=4),
    SamplingSettings(top_p=0.8, min_p=0.02),
    SamplingSettings(guidance_scale=2.0, top_p=0.9),
    SamplingSettings(guidance_scale=3.0, guidance_schedule="power-cosine", guidance_power=2.0),
]


def condition_for(sizes: tuple[int, int, int, int], rows: int, columns: int, seed: int):
    """Condition tokens (2, C + G * rows * columns)."""
    random = torch.Generator().manual_seed(1000 + seed)
    return CODES + torch.randint(3, (2, sizes[0] + sizes[1] * rows * columns), generator=random)


def forced_for(kind: str, rows: int, columns: int, seed: int):
    """Known codes: none, one grid for both samples, one each, or all of the upper rows."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(CODES, (2, rows, columns), generator=random)
    if kind == "rows":
        codes[:, seed % rows :] = -1
        return codes
    codes[torch.rand(codes.shape, generator=random) < 0.6] = -1
    return {"none": None, "one": codes[0], "each": codes}[kind]


def assert_same(sampled, expected):
    assert torch.equal(sampled.codes, expected.codes)
    torch.testing.assert_close(sampled.log_probabilities, expected.log_probabilities)


@given(
    sizes=st.sampled_from(sorted(MODELS)),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    parallel_rows=st.integers(1, 10),
    choice=st.sampled_from(CHOICES),
    kinds=st.lists(st.sampled_from(["none", "one", "each", "rows"]), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(10))
def test_static_sampling_equals_the_plain_sampler(
    sizes, rows, columns, parallel_rows, choice, kinds, seed
):
    """One sampler draws several batches, and nothing of a batch is left in the next one."""
    model = MODELS[sizes]
    with pytest.MonkeyPatch.context() as patched:
        copies = 2 if choice.guides else 1
        patched.setattr(local_sampling, "POSITIONS_AT_ONCE", 2 * copies * parallel_rows)
        sampler = StaticLocalSampler(model, choice, (2, rows, columns))
        for number, kind in enumerate(kinds):
            prefixes = condition_for(sizes, rows, columns, seed + number)
            numbers = numbers_for(rows, columns, seed + number)
            options = {
                "null_prefixes": torch.full_like(prefixes, CODES),
                "forced": forced_for(kind, rows, columns, seed + number),
            }
            expected = sample_locally(model, prefixes, numbers, choice, **options)
            assert_same(sampler.sample(prefixes, numbers, **options), expected)


def test_rows_that_are_not_read_have_log_probability_0_after_another_batch():
    model, choice, numbers = MODELS[2, 0, 1, 0], SamplingSettings(), numbers_for(14, 3)
    prefixes = condition_for((2, 0, 1, 0), 14, 3, 0)
    sampler = StaticLocalSampler(model, choice, (2, 14, 3))
    whole = sampler.sample(prefixes, numbers)
    forced = whole.codes.clone()
    forced[:, 12:] = -1
    read = []
    again = sampler.sample(
        prefixes, numbers, forced=forced, on_cells=lambda count, _: read.append(count)
    )
    assert read[0] > 3  # rows out of reach of the open cells
    assert torch.equal(again.codes, whole.codes)
    assert (again.log_probabilities[:, :12] == 0).all()
