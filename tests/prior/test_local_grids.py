"""Grid conditions of a prior without windows: read at and around each code, cached in sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from prior import (
    ClassLabel,
    Conditions,
    Depth,
    Inpaint,
    Prior,
    Segmentation,
    condition_sizes,
    preset_config,
)
from prior.models.local_gpt import LocalConfig, LocalGPT
from prior.sampling import local as local_sampling
from prior.sampling.distributions import SamplingSettings, draw, guided
from prior.sampling.local import GridContextRows, RowRing, sample_locally
from tests.conftest import examples
from tests.prior.models.test_local_gpt import CODES, codes_for, random_model
from tests.prior.sampling.test_local import numbers_for

MODELS = {
    (first, grids, around): random_model(
        condition_length=first, condition_grids=grids, depthwise_context=around
    )
    for first, grids, around in [(0, 1, 2), (2, 1, 0), (1, 2, 1)]
}


def inputs_for(sizes, rows, columns, seed=0, batch=2):
    """Condition tokens, grids last."""
    first, grids, _ = sizes
    random = torch.Generator().manual_seed(1000 + seed)
    return CODES + torch.randint(3, (batch, first + grids * rows * columns), generator=random)


@torch.no_grad()
def sample_slowly(model, tokens, null_tokens, numbers, choice, forced=None):
    """One whole forward a code; codes not yet sampled are 0, which must not matter."""
    _, rows, columns = numbers.shape
    codes = torch.zeros(2, rows, columns, dtype=torch.int64)
    for i in range(rows):
        for j in range(columns):
            if forced is not None and forced[i, j] >= 0:
                codes[:, i, j] = forced[i, j]
                continue
            logits = model.code_logits(tokens, codes)[:, i, j]
            if choice.guides:
                null_logits = model.code_logits(null_tokens, codes)[:, i, j]
                logits = guided(logits, null_logits, choice.guidance_scale)
            codes[:, i, j] = draw(logits, numbers[:, i, j], choice).codes
    return codes


@given(
    sizes=st.sampled_from(sorted(MODELS)),
    rows=st.integers(1, 7),
    columns=st.integers(1, 8),
    at_once=st.integers(1, 8),
    scale=st.sampled_from([1.0, 2.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(20), deadline=None)
def test_sampling_with_grids_is_the_slow_loop(sizes, rows, columns, at_once, scale, seed):
    model, numbers = MODELS[sizes], numbers_for(rows, columns, seed)
    tokens, choice = (
        inputs_for(sizes, rows, columns, seed),
        SamplingSettings(guidance_scale=scale),
    )
    null_tokens = torch.full_like(tokens, CODES)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local_sampling, "POSITIONS_AT_ONCE", 2 * at_once)
        sampled = sample_locally(model, tokens, numbers, choice, null_prefixes=null_tokens).codes
    assert torch.equal(sampled, sample_slowly(model, tokens, null_tokens, numbers, choice))


@torch.no_grad()
@pytest.mark.parametrize("sizes", sorted(MODELS))
def test_cached_logits_are_those_of_the_whole_forward(sizes):
    model, (rows, columns) = MODELS[sizes], (9, 6)
    codes, tokens = codes_for(rows, columns, batch=2), inputs_for(sizes, 9, 6)
    whole = model.code_logits(tokens, codes)
    prefixes, grids = model.split_tokens(tokens, rows, columns)
    ring = RowRing(model, prefixes, columns + 1, kept=1 + model.config.radius)
    context = GridContextRows(model, grids, 1)
    received = torch.cat([torch.full((2, rows, 1), model.config.border_token), codes], 2)
    for row in range(rows):
        for column in range(columns + 1):
            place = torch.tensor([row]), torch.tensor([column])
            here = context.at([(row, column)])
            features = ring.read(received[:, row, column : column + 1], *place, here)
            if column < columns:
                torch.testing.assert_close(model.head(features)[:, 0], whole[:, row, column])


def test_code_depends_on_the_grid_below_and_to_its_right():
    model, codes = MODELS[0, 1, 2], codes_for(8, 9)
    tokens = inputs_for((0, 1, 2), 8, 9, batch=1)
    other = tokens.clone().view(1, 8, 9)
    other[0, 5, 6] = CODES + (other[0, 5, 6] - CODES + 1) % 3
    with torch.no_grad():
        before, after = (
            model.code_logits(tokens, codes),
            model.code_logits(other.view(1, -1), codes),
        )
    changed = (before != after)[0].any(-1)
    assert changed[3:6, 4:9].all()  # up to two cells around it
    assert not changed[:3].any()  # not further above: a code depends on codes above it only


@pytest.mark.parametrize("corner", [(0, 0), (0, 3), (0, 7), (5, 0), (5, 4), (5, 7), (8, 4)])
@pytest.mark.parametrize("around", [0, 1, 2])
def test_uncut_cells_of_a_crop_get_the_logits_they_have_in_the_whole(corner, around):
    model = random_model(condition_length=1, condition_grids=1, depthwise_context=around)
    side, (rows, columns), (top, left) = 15, (23, 22), corner
    codes, tokens = (
        codes_for(rows, columns),
        inputs_for((1, 1, around), rows, columns, batch=1),
    )
    first, grid = model.split_tokens(tokens, rows, columns)
    window = (..., slice(top, top + side), slice(left, left + side))
    cut = torch.cat([first, grid[window].flatten(1)], 1)
    edges = torch.tensor([[top == 0, left == 0, left + side == columns, top + side == rows]])
    with torch.no_grad():
        whole = model.code_logits(tokens, codes)[:, top : top + side, left : left + side]
        cropped = model.code_logits(cut, codes[window])
    equal = torch.isclose(whole, cropped, rtol=1e-9, atol=1e-9).all(-1)
    uncut = model.uncut(edges, side, side)
    assert uncut.any()
    assert torch.equal(uncut, equal)


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    kept = []

    class NotedRows(GridContextRows):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self.kept.shape)

    monkeypatch.setattr(local_sampling, "GridContextRows", NotedRows)
    for rows in (8, 40):
        tokens = inputs_for((0, 1, 2), rows, 3)
        sample_locally(MODELS[0, 1, 2], tokens, numbers_for(rows, 3), SamplingSettings())
    assert kept[0] == kept[1]


@pytest.mark.parametrize("grids", [0, 1])
def test_sampling_resumes_below_known_rows_bit_for_bit_and_reads_few_of_them(grids, monkeypatch):
    model = random_model(condition_grids=grids).float()
    (rows, columns), read = (40, 5), []
    tokens = inputs_for((2, grids, 2), rows, columns)
    numbers, valid_mask = numbers_for(rows, columns), []
    whole = sample_locally(model, tokens, numbers, SamplingSettings())
    plain = RowRing.read
    monkeypatch.setattr(RowRing, "read", lambda self, *given: read.append(1) or plain(self, *given))
    for done in (3, 17, 36):
        forced = whole.codes.clone()
        forced[:, done:] = -1
        read.clear(), valid_mask.clear()
        again = sample_locally(
            model,
            tokens,
            numbers,
            SamplingSettings(),
            forced=forced,
            on_cells=lambda n, _: valid_mask.append(n),
        )
        assert torch.equal(again.codes, whole.codes)
        assert torch.equal(again.log_probabilities[:, done:], whole.log_probabilities[:, done:])
        assert sum(valid_mask) == rows * columns
    assert len(read) < 0.5 * rows * (columns + 1)


PARTS = (Segmentation(codebook_size=4), Depth(codebook_size=3), ClassLabel(num_classes=2))


def local_prior(*parts, window=6):
    torch.manual_seed(0)
    conditions = Conditions(parts, CODES)
    sizes = condition_sizes("tiny-local", conditions, window)
    assert sizes["condition_grids"] == conditions.num_grids
    config = {**sizes, "num_layers": 2, "num_heads": 2, "width": 16, "radius": 2}
    model = LocalGPT(preset_config("tiny-local", **config)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Prior(model.eval(), conditions, {})


def test_prior_with_grids_samples_any_canvas():
    prior, random = local_prior(*PARTS), torch.Generator().manual_seed(3)
    for rows, columns in [(4, 5), (6, 6), (9, 11)]:
        condition_inputs = {
            "segmentation": torch.randint(4, (2, rows, columns), generator=random),
            "depth": torch.randint(3, (2, rows, columns), generator=random),
            "label": torch.tensor([1, 0]),
        }
        sampled = prior.sample_with_log_probs(
            rows, columns, count=2, seed=5, condition_inputs=condition_inputs, guidance_scale=2.0
        )
        batch = {**condition_inputs, "codes": sampled.codes}
        tokens = prior.conditions.tokens(batch, 2)
        null_tokens = prior.conditions.null_tokens(2, (rows, columns))
        numbers = numbers_for(rows, columns, seed=5)
        choice = SamplingSettings(guidance_scale=2.0)
        expected = sample_slowly(prior.model, tokens, null_tokens, numbers, choice)
        assert torch.equal(sampled.codes, expected)


def test_prior_with_grids_alone_needs_no_other_token():
    prior = local_prior(Inpaint(codebook_size=CODES))
    assert prior.config.condition_length == 0
    assert prior.sample(5, 7, count=2).shape == (2, 5, 7)


def test_wrong_number_of_tokens_is_refused():
    with pytest.raises(ConfigError, match="1 grids as large"):
        MODELS[0, 1, 2].code_logits(torch.full((1, 7), CODES), codes_for(2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_length": 0}, "condition_length"),
        ({"condition_length": 1, "condition_grids": -1}, "condition_grids"),
        ({"condition_length": 1, "depthwise_context": -1}, "depthwise_context"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        LocalConfig(codebook_size=4, condition_vocab_size=1, **options)
