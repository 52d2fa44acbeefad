import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from prior.sampling.distributions import (
    SamplingSettings,
    draw,
    guided,
    keep_min_p,
    keep_top_k,
    keep_top_p,
)
from tests.conftest import examples

logit_rows = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)
largest_uniform = math.nextafter(1.0, 0.0)
uniform_numbers = st.floats(0, largest_uniform)


def slow_draw(logits, uniform, choice):
    """Reference for one row, with Python floats: its code, log-probability, and the place of the
    number in the code's interval, from 0 to 1."""
    scaled = [logit / choice.temperature for logit in logits]
    kept = set(range(len(scaled)))
    if choice.top_k is not None and choice.top_k < len(scaled):
        lowest = sorted(scaled, reverse=True)[choice.top_k - 1]
        kept = {code for code in kept if scaled[code] >= lowest}
    weights = [math.exp(v - max(scaled)) if c in kept else 0.0 for c, v in enumerate(scaled)]
    shares = [weight / sum(weights) for weight in weights]
    if choice.top_p is not None:
        before, nucleus = 0.0, set()
        for code in sorted(range(len(shares)), key=lambda code: -shares[code]):
            if before < choice.top_p:
                nucleus.add(code)
            before += shares[code]
        shares = [share if code in nucleus else 0.0 for code, share in enumerate(shares)]
    if choice.min_p is not None:
        shares = [share if share >= choice.min_p * max(shares) else 0.0 for share in shares]
    target, reached = uniform * sum(shares), 0.0
    for code, share in enumerate(shares):
        reached += share
        if reached > target:
            place = (target - (reached - share)) / share
            return code, math.log(share / sum(shares)), place
    raise AssertionError("the cumulative probabilities do not reach the number")


choices = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.none() | st.sampled_from([0.01, 0.3, 1.0]),
)


@given(logits=logit_rows, uniform=st.integers(0, 999), choice=choices)
@settings(max_examples=examples(150), deadline=None)
def test_draw_equals_the_reference(logits, uniform, choice):
    number = (uniform + 0.5) / 1000
    drawn = draw(torch.tensor([logits]), torch.tensor([number]).double(), choice)
    code, log_probability, _ = slow_draw(logits, number, choice)
    assert drawn.codes.tolist() == [code]
    assert drawn.log_probabilities.tolist() == pytest.approx([log_probability], abs=1e-5)


@given(logits=logit_rows, uniform=uniform_numbers, choice=choices)
@settings(max_examples=examples(150), deadline=None)
def test_only_kept_codes_are_drawn(logits, uniform, choice):
    row = torch.tensor([logits]).double() / choice.temperature
    if choice.top_k is not None:
        row = keep_top_k(row, choice.top_k)
    shares = row.softmax(-1)
    if choice.top_p is not None:
        shares = keep_top_p(shares, choice.top_p)
    if choice.min_p is not None:
        shares = keep_min_p(shares, choice.min_p)
    code = draw(torch.tensor([logits]), torch.tensor([uniform]), choice).codes.item()
    assert 0 <= code < len(logits)
    assert shares[0, code] > 0


def test_rows_are_drawn_independently():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    numbers = torch.linspace(0, 0.99, 5).double()
    choice = SamplingSettings(top_k=4, top_p=0.8)
    batched = draw(logits, numbers, choice)
    separate = [draw(logits[i : i + 1], numbers[i : i + 1], choice) for i in range(5)]
    assert torch.equal(batched.codes, torch.cat([row.codes for row in separate]))
    assert torch.equal(
        batched.log_probabilities, torch.cat([row.log_probabilities for row in separate])
    )


def test_frequencies_match_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(20_000, 4)
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = draw(logits, numbers, SamplingSettings()).codes
    drawn = codes.bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, logits[0].softmax(-1), rtol=0, atol=0.01)


def test_the_highest_number_draws_the_last_possible_code():
    logits = torch.tensor([[0.0, 0.1, -torch.inf]])
    number = torch.tensor([largest_uniform], dtype=torch.float64)
    assert draw(logits, number, SamplingSettings()).codes.item() == 1


def test_temperature_0_and_top_k_1_take_the_most_likely_code():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    numbers = torch.tensor([0.99, 0.99]).double()
    for choice in (SamplingSettings(temperature=0), SamplingSettings(top_k=1)):
        drawn = draw(logits, numbers, choice)
        assert drawn.codes.tolist() == [1, 0]
        assert drawn.log_probabilities.tolist() == [0, 0]  # no other code was possible


def test_guidance_moves_logits_away_from_the_null_logits():
    logits, null_logits = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    assert guided(logits, null_logits, 1.0).tolist() == [2.0, 0.0]
    assert guided(logits, null_logits, 0.0).tolist() == [1.0, 0.0]
    assert guided(logits, null_logits, 3.0).tolist() == [4.0, 0.0]


def test_power_cosine_guidance_rises_from_1_to_guidance_scale():
    choice = SamplingSettings(guidance_scale=5, guidance_schedule="power-cosine")
    assert [choice.guidance_at(share) for share in (0, 0.5, 1)] == pytest.approx([1, 3, 5])
    late = SamplingSettings(guidance_scale=5, guidance_schedule="power-cosine", guidance_power=2.75)
    # RAR's formula at one third: 1 + (5 - 1) * (1 - cos(pi * (1/3) ** 2.75)) / 2
    assert late.guidance_at(1 / 3) == pytest.approx(1.0234037)
    assert SamplingSettings(guidance_scale=5).guidance_at(0) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 0.0},
        {"min_p": 1.1},
        {"guidance_scale": -0.1},
        {"guidance_schedule": "linear"},
        {"guidance_power": 0.0},
    ],
)
def test_invalid_settings_are_rejected(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingSettings(**wrong)
