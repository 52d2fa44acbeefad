import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from prior.sampling import SamplingSettings, draw, guided, keep_top_k, keep_top_p

logit_rows = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)
largest_uniform = math.nextafter(1.0, 0.0)
uniform_numbers = st.floats(0, largest_uniform)


def slow_draw(logits, uniform, choice):
    """One row, with Python's floats: sort, keep, add up until the number is passed."""
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
    target, reached = uniform * sum(shares), 0.0
    for code, share in enumerate(shares):
        reached += share
        if reached > target:
            return code
    raise AssertionError("the shares do not reach the number")


choices = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)


@given(logits=logit_rows, uniform=st.integers(0, 999), choice=choices)
@settings(max_examples=150, deadline=None)
def test_a_draw_is_the_slow_draw(logits, uniform, choice):
    number = (uniform + 0.5) / 1000
    code = draw(torch.tensor([logits]), torch.tensor([number]).double(), choice).item()
    assert code == slow_draw(logits, number, choice)


@given(logits=logit_rows, uniform=uniform_numbers, choice=choices)
@settings(max_examples=150, deadline=None)
def test_only_codes_that_were_kept_are_drawn(logits, uniform, choice):
    row = torch.tensor([logits]).double() / choice.temperature
    if choice.top_k is not None:
        row = keep_top_k(row, choice.top_k)
    shares = row.softmax(-1)
    if choice.top_p is not None:
        shares = keep_top_p(shares, choice.top_p)
    code = draw(torch.tensor([logits]), torch.tensor([uniform]), choice).item()
    assert 0 <= code < len(logits)
    assert shares[0, code] > 0


def test_rows_are_drawn_apart():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    numbers = torch.linspace(0, 0.99, 5).double()
    choice = SamplingSettings(top_k=4, top_p=0.8)
    together = draw(logits, numbers, choice)
    apart = [draw(logits[i : i + 1], numbers[i : i + 1], choice).item() for i in range(5)]
    assert together.tolist() == apart


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(20_000, 4)
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = draw(logits, numbers, SamplingSettings()).bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, logits[0].softmax(-1), rtol=0, atol=0.01)


def test_the_highest_number_draws_the_last_code_that_can_be():
    logits = torch.tensor([[0.0, 0.1, -torch.inf]])
    number = torch.tensor([largest_uniform], dtype=torch.float64)
    assert draw(logits, number, SamplingSettings()).item() == 1


def test_temperature_0_and_top_k_1_take_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    numbers = torch.tensor([0.99, 0.99]).double()
    for choice in (SamplingSettings(temperature=0), SamplingSettings(top_k=1)):
        assert draw(logits, numbers, choice).tolist() == [1, 0]


def test_guidance_leads_away_from_what_is_drawn_when_told_nothing():
    logits, null_logits = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    assert guided(logits, null_logits, 1.0).tolist() == [2.0, 0.0]
    assert guided(logits, null_logits, 0.0).tolist() == [1.0, 0.0]
    assert guided(logits, null_logits, 3.0).tolist() == [4.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"guidance_scale": -0.1}],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingSettings(**wrong)
