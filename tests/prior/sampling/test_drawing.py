"""Codes drawn level by level, against the joint distribution and slow loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.noise import uniforms
from ops.windows import Window, raster, window_of
from prior import (
    Conditions,
    LocalGPT,
    Prior,
    StartOfSequence,
    condition_sizes,
    make_model,
    preset_config,
)
from prior.models.code_levels import LevelHead
from prior.sampling.distributions import SamplingSettings, draw, draw_and_rescale
from prior.sampling.drawing import draw_codes
from tests.conftest import examples
from tests.prior.models.test_code_levels import LEVELS, small_gpt
from tests.prior.models.test_registry import small_prior
from tests.prior.sampling.test_distributions import choices, largest_uniform, slow_draw

MODEL = small_gpt()


def slow_levels(joint, null_joint, scale, levels, number, choice):
    """Reference: a code and its log-probability from lists of log-probabilities of all codes.

    A level's logits are the logs of its marginal probabilities, given the levels before it.
    """
    place, before, total_log = 1, 0, 0.0
    for level in levels:

        def marginals(logs, level=level, place=place, before=before):
            """Of each value: the codes of the levels so far are equal modulo place * level."""
            return [
                math.log(
                    sum(
                        math.exp(log)
                        for code, log in enumerate(logs)
                        if code % (place * level) == before + value * place
                    )
                )
                for value in range(level)
            ]

        logits = marginals(joint)
        if null_joint is not None:
            nulls = marginals(null_joint)
            logits = [n + scale * (x - n) for x, n in zip(logits, nulls, strict=True)]
        value, log, number = slow_draw(logits, number, choice)
        before, place, total_log = before + value * place, place * level, total_log + log
    return before, total_log


def random_features(seed, *shape):
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=random, dtype=torch.float64)


@torch.no_grad()
@given(seed=st.integers(0, 99), choice=choices, scale=st.sampled_from([None, 0.5, 3.0]))
@settings(max_examples=examples(60))
def test_codes_are_drawn_by_their_levels_as_in_the_reference(seed, choice, scale):
    features = random_features(seed, 2 if scale is None else 4, 3, 8)
    numbers = torch.from_numpy(uniforms(seed, range(2), 3, 1))[..., 0]
    scales = None if scale is None else torch.full((3, 1), scale, dtype=torch.float64)
    drawn = draw_codes(MODEL, features, numbers, choice, scales)
    joints = MODEL.head(features)
    for sample in range(2):
        for cell in range(3):
            null = None if scale is None else joints[2 + sample, cell].tolist()
            code, log = slow_levels(
                joints[sample, cell].tolist(), null, scale, LEVELS, float(numbers[sample, cell]),
                choice,
            )  # fmt: skip
            assert drawn.codes[sample, cell] == code
            assert float(drawn.log_probabilities[sample, cell]) == pytest.approx(log, abs=1e-5)


@torch.no_grad()
def test_levels_are_drawn_as_one_number_draws_from_all_codes():
    """The codes ordered by their first level, then by the second, and so on."""
    features = random_features(0, 1, 1, 8).expand(1, 500, 8)
    numbers = (torch.arange(500).double()[None] + 0.5) / 500
    drawn = draw_codes(MODEL, features, numbers, SamplingSettings())
    order = torch.arange(24).view(*reversed(LEVELS)).permute(2, 1, 0).flatten()
    joint = MODEL.head(features[0])
    whole = draw(joint[:, order], numbers[0], SamplingSettings())
    assert torch.equal(drawn.codes[0], order[whole.codes])
    torch.testing.assert_close(drawn.log_probabilities[0], whole.log_probabilities)
    expected = joint.gather(1, drawn.codes[0][:, None])[:, 0]
    torch.testing.assert_close(drawn.log_probabilities[0].double(), expected, rtol=1e-6, atol=1e-6)


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    number=st.floats(0, largest_uniform),
    choice=choices,
)
def test_a_rescaled_number_is_the_place_in_the_interval_of_its_code(logits, number, choice):
    numbers = torch.tensor([number], dtype=torch.float64)
    drawn, rescaled = draw_and_rescale(torch.tensor([logits]), numbers, choice)
    code, _, place = slow_draw(logits, number, choice)
    assert 0 <= rescaled.item() <= 1
    if drawn.codes.item() == code:  # else the number is within rounding of the interval's end
        width = math.exp(drawn.log_probabilities.item())
        assert rescaled.item() == pytest.approx(place, abs=1e-12 / max(width, 1e-12))


@torch.no_grad()
def test_temperature_0_takes_the_most_likely_value_of_each_level():
    features, numbers = random_features(1, 1, 40, 8), torch.zeros(1, 40).double()
    drawn = draw_codes(MODEL, features, numbers, SamplingSettings(temperature=0))
    top_1 = draw_codes(MODEL, features, numbers, SamplingSettings(top_k=1))
    assert torch.equal(drawn.codes, top_1.codes)
    assert (drawn.log_probabilities == 0).all()


@torch.no_grad()
def sample_slowly(prior, rows, columns, labels, choice, *, stride, seed, forced):
    """Reference: a whole forward of the window for each cell; open cells are read as code 0."""
    model, conditions, count = prior.model, prior.conditions, len(labels)
    numbers = torch.from_numpy(uniforms(seed, range(count), rows, columns))
    codes, logs = forced.repeat(count, 1, 1), torch.zeros(count, rows, columns)
    for row, column in raster(rows, columns):
        if forced[row, column] >= 0:
            continue
        window = Window(0, 0, rows, columns)
        if not isinstance(model, LocalGPT):
            window = window_of(row, column, rows, columns, prior.config.window, stride)
        visible = codes[:, *window.slices()].clamp(min=0)
        tokens = conditions.tokens({"label": labels}, count), conditions.null_tokens(count)
        features = [model.code_features(own, visible).flatten(1, 2) for own in tokens]
        joint, null_joint = (model.head(own[:, window.offset_of(row, column)]) for own in features)
        for sample in range(count):
            codes[sample, row, column], logs[sample, row, column] = slow_levels(
                joint[sample].tolist(),
                null_joint[sample].tolist() if choice.guides else None,
                choice.guidance_scale,
                prior.config.code_levels,
                float(numbers[sample, row, column]),
                choice,
            )
    return codes, logs


GUIDED = {"guidance_scale": 2.0, "top_p": 0.9, "temperature": 0.8}


@pytest.mark.parametrize(
    ("name", "static", "stride", "choice"),
    [
        ("gpt", False, 2, GUIDED),
        ("gpt", True, 2, GUIDED),
        ("gpt", False, 1, {}),
        ("local", False, None, {}),
        ("local", True, None, GUIDED),
        ("snail", False, 2, GUIDED),
    ],
)
def test_every_sampler_draws_levels_as_the_slow_loop(name, static, stride, choice):
    prior = small_prior(f"{name}-levels")
    assert isinstance(prior.model.head, LevelHead)
    forced = torch.full((6, 5), -1)
    forced[1, 1:4] = 3
    options = {"labels": [0, 1], "seed": 5, "forced": forced, "stride": stride}
    drawn = prior.sample_with_log_probs(6, 5, count=2, static_decode=static, **options, **choice)
    codes, logs = sample_slowly(
        prior, 6, 5, [0, 1], SamplingSettings(**choice), stride=stride, seed=5, forced=forced
    )
    assert torch.equal(drawn.codes, codes)
    torch.testing.assert_close(drawn.log_probabilities, logs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_vocabulary_of_262144_codes_has_few_weights_and_is_sampled_from():
    torch.manual_seed(0)
    conditions = Conditions([StartOfSequence()], 2**18)
    sizes = condition_sizes("study", conditions, 4, code_levels=(64, 64, 64))
    model = make_model(preset_config("study", **sizes, num_layers=1, width=16)).eval()
    assert sum(p.numel() for p in model.parameters()) < 20_000
    tokenizer = {"codebook_size": 2**18, "downsample_factor": 8, "name": "", "fingerprint": ""}
    drawn = Prior(model, conditions, tokenizer).sample_with_log_probs(4, 4, count=2)
    nll = model.nll(conditions.null_tokens(2), drawn.codes)
    assert drawn.codes.max() > 2**17
    torch.testing.assert_close(drawn.log_probabilities, -nll, rtol=1e-4, atol=1e-4)
