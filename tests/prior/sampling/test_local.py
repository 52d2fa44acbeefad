"""Cached sampling from a LocalGPT against whole forwards, one for each code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.noise import uniforms
from prior.sampling import local as local_sampling
from prior.sampling.distributions import SamplingSettings, draw, guided
from prior.sampling.local import RowRing, sample_locally
from tests.conftest import examples
from tests.prior.models.test_local_gpt import CODES, codes_for, random_model

MODELS = {radius: random_model(radius=radius) for radius in (1, 2, 3)}
PREFIXES = torch.tensor([[CODES, CODES + 2], [CODES + 1, CODES + 1]])
NULL_PREFIXES = torch.full((2, 2), CODES)


def numbers_for(rows, columns, seed=0):
    return torch.from_numpy(uniforms(seed, range(2), rows, columns))


@torch.no_grad()
def sample_slowly(model, numbers, choice, forced=None):
    """Reference: a whole forward for each code. Open cells are read as code 0, without effect."""
    _, rows, columns = numbers.shape
    codes = torch.zeros(2, rows, columns, dtype=torch.int64)
    for i in range(rows):
        for j in range(columns):
            if forced is not None and forced[i, j] >= 0:
                codes[:, i, j] = forced[i, j]
                continue
            logits = model.code_logits(PREFIXES, codes)[:, i, j]
            if choice.guidance_scale != 1:
                null_logits = model.code_logits(NULL_PREFIXES, codes)[:, i, j]
                logits = guided(logits, null_logits, choice.guidance_scale)
            codes[:, i, j] = draw(logits, numbers[:, i, j], choice).codes
    return codes


@given(
    radius=st.sampled_from(sorted(MODELS)),
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    parallel_rows=st.integers(1, 10),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(30))
def test_sampling_equals_the_reference(radius, rows, columns, parallel_rows, seed):
    numbers, choice = numbers_for(rows, columns, seed), SamplingSettings()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local_sampling, "POSITIONS_AT_ONCE", 2 * parallel_rows)
        sampled = sample_locally(MODELS[radius], PREFIXES, numbers, choice).codes
    assert torch.equal(sampled, sample_slowly(MODELS[radius], numbers, choice))


def test_sampling_with_guidance_and_forced_codes_equals_the_reference():
    model, numbers = MODELS[2], numbers_for(6, 7)
    choice = SamplingSettings(guidance_scale=1.5, top_k=5)
    forced = torch.full((6, 7), -1)
    forced[:2], forced[3, 2], forced[4, 6] = 3, 7, 1
    sampled = sample_locally(
        model, PREFIXES, numbers, choice, null_prefixes=NULL_PREFIXES, forced=forced
    ).codes
    assert torch.equal(sampled, sample_slowly(model, numbers, choice, forced))


def test_each_sample_resumes_from_its_own_forced_codes():
    """Forcing the upper rows of a sampled canvas gives the same lower rows."""
    model, numbers, choice = MODELS[2], numbers_for(6, 7), SamplingSettings()
    whole = sample_locally(model, PREFIXES, numbers, choice).codes
    assert not torch.equal(whole[0, :3], whole[1, :3])
    forced = whole.clone()
    forced[:, 3:] = -1
    again = sample_locally(model, PREFIXES, numbers, choice, forced=forced).codes
    assert torch.equal(again, whole)


def test_samples_may_have_different_known_cells():
    model, numbers, choice = MODELS[2], numbers_for(6, 7), SamplingSettings()
    random = torch.Generator().manual_seed(3)
    forced = torch.randint(8, (2, 6, 7), generator=random)
    forced[torch.rand(forced.shape, generator=random) < 0.6] = -1
    batched = sample_locally(model, PREFIXES, numbers, choice, forced=forced)
    assert torch.equal(batched.codes[forced >= 0], forced[forced >= 0])
    assert (batched.log_probabilities[forced >= 0] == 0).all()
    for sample in range(2):
        both = forced[sample].expand(2, -1, -1)
        alone = sample_locally(model, PREFIXES, numbers, choice, forced=both).codes
        assert torch.equal(alone[sample], batched.codes[sample])


@torch.no_grad()
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (12, 5), (4, 30)])
def test_cached_logits_equal_a_whole_forward(rows, columns):
    """At every position, one at a time, in float64."""
    model, codes = MODELS[3], codes_for(rows, columns, batch=2)
    whole = model.code_logits(PREFIXES, codes)
    ring = RowRing(model, PREFIXES, columns + 1, kept=1 + 3)
    border = torch.full((2, rows, 1), model.config.border_token)
    received = torch.cat([border, codes], 2)
    for row in range(rows):
        for column in range(columns + 1):
            position = torch.tensor([row]), torch.tensor([column])
            features = ring.read(received[:, row, column : column + 1], *position)
            if column < columns:
                torch.testing.assert_close(model.head(features)[:, 0], whole[:, row, column])


def test_cache_memory_does_not_depend_on_the_number_of_rows(monkeypatch):
    sizes = []

    class RecordedRing(RowRing):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            sizes.append(self.nbytes)

    monkeypatch.setattr(local_sampling, "RowRing", RecordedRing)
    for rows in (8, 40):
        sample_locally(MODELS[1], PREFIXES, numbers_for(rows, 3), SamplingSettings())
    assert sizes[0] == sizes[1]


def test_every_cell_is_reported_once():
    counts = []
    numbers = numbers_for(5, 4)
    sample_locally(
        MODELS[2],
        PREFIXES,
        numbers,
        SamplingSettings(),
        on_cells=lambda n, _: counts.append(n),
    )
    assert sum(counts) == 20
