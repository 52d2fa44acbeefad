"""Condition inputs of samples: checked, cut to each window, independent of other samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.noise import uniforms
from ops.windows import Window
from prior import (
    GPT,
    Boxes,
    ClassLabel,
    Conditions,
    Coordinates,
    GPTConfig,
    Inpaint,
    Keypoints,
    Prior,
    Segmentation,
    condition_sizes,
    make_model,
    preset_config,
)
from prior.conditions.frames import in_window
from prior.sampling.distributions import SamplingSettings
from tests.conftest import examples
from tests.prior.sampling.test_sliding_window import sample_slowly

INFO = {"fingerprint": "ab" * 8, "codebook_size": 7, "downsample_factor": 4, "name": "made-up"}
EVERYTHING = (
    Segmentation(codebook_size=5),
    ClassLabel(num_classes=3),
    Boxes(num_categories=2, max_objects=2, places=4),
    Inpaint(codebook_size=7),
    Keypoints(num_points=2, places=4),
    Coordinates(codebook_size=20, downsample_factor=4),
)


def random_prior(*parts, window=4, **options):
    torch.manual_seed(0)
    conditions = Conditions(parts, 7)
    sizes = condition_sizes("tiny", conditions, window)
    model = GPT(GPTConfig(**sizes, num_layers=2, num_heads=2, width=16, **options)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return Prior(model.eval(), conditions, INFO)


PRIORS = {
    positions: random_prior(*EVERYTHING, positions=positions) for positions in ("learned", "rope2d")
}


def random_condition_inputs(rows, columns, count=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 3, 5, generator=random) * 1.5 - 0.2
    boxes[..., 3:] += 0.3
    boxes[..., 0] = torch.randint(-1, 2, (count, 3), generator=random)
    return {
        "segmentation": torch.randint(-1, 5, (count, rows, columns), generator=random),
        "label": torch.tensor([2, 0])[:count],
        "boxes": boxes,
        "codes": torch.randint(-1, 7, (count, rows, columns), generator=random),
        "keypoints": torch.rand(count, 2, 2, generator=random),
    }


def slow_prefix(prior, condition_inputs, rows, columns, guides):
    """Window by window: the tokens of a training batch that is cut there, its grids padded."""
    side, count = prior.config.window, len(condition_inputs["label"])
    condition_inputs = {
        **condition_inputs,
        "known": condition_inputs["codes"] >= 0,
        "crop": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1),
        "place": torch.tensor([[0, 0, rows, columns]]).repeat(count, 1),
    }

    def of_window(window: Window):
        entries = prior.conditions.entries
        cut = in_window(entries, condition_inputs, window, (rows, columns), (side, side))
        tokens = prior.conditions.tokens(cut, count)
        first = prior.conditions.length
        grids = tokens[:, first:].view(count, -1, window.rows, window.columns)
        while grids.shape[2] < side:
            grids = torch.cat([grids, grids[:, :, -1:]], 2)
        while grids.shape[3] < side:
            grids = torch.cat([grids, grids[..., -1:]], 3)
        tokens = torch.cat([tokens[:, :first], grids.flatten(1)], 1)
        if not guides:
            return tokens
        return torch.cat([tokens, prior.conditions.null_tokens(count, (side, side))])

    return of_window


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    stride=st.sampled_from([1, 2]),
    positions=st.sampled_from(sorted(PRIORS)),
    scale=st.sampled_from([1.0, 2.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(20), deadline=None)
def test_sampling_with_every_condition_is_the_papers_loop_window_by_window(
    rows, columns, stride, positions, scale, seed
):
    prior, condition_inputs = PRIORS[positions], random_condition_inputs(rows, columns, seed=seed)
    sampled = prior.sample_with_log_probs(
        rows,
        columns,
        count=2,
        seed=seed,
        stride=stride,
        condition_inputs=condition_inputs,
        guidance_scale=scale,
    )
    numbers = torch.from_numpy(uniforms(seed, range(2), rows, columns))
    expected = sample_slowly(
        prior.model,
        slow_prefix(prior, condition_inputs, rows, columns, scale != 1),
        numbers,
        SamplingSettings(guidance_scale=scale),
        stride=stride,
    )
    assert torch.equal(sampled.codes, expected[0])


def test_sampling_resumes_bit_for_bit_with_every_condition():
    prior, condition_inputs = random_prior(*EVERYTHING), random_condition_inputs(9, 7)
    prior.model.float()
    options = {
        "count": 2,
        "flush_every_rows": 3,
        "condition_inputs": condition_inputs,
        "guidance_scale": 2.0,
    }
    whole = prior.sample_with_log_probs(9, 7, **options)
    for done in (3, 6):
        forced = whole.codes.clone()
        forced[:, done:] = -1
        again = prior.sample_with_log_probs(9, 7, forced=forced, **options)
        assert torch.equal(again.codes, whole.codes)
        assert torch.equal(again.log_probabilities[:, done:], whole.log_probabilities[:, done:])


def test_sample_does_not_depend_on_the_inputs_of_other_samples():
    prior = random_prior(*EVERYTHING)
    prior.model.float()
    condition_inputs = random_condition_inputs(6, 6, count=2)
    both = prior.sample(6, 6, samples=[4, 1], batch_size=3, condition_inputs=condition_inputs)
    for place, sample in enumerate([4, 1]):
        own = {name: value[place] for name, value in condition_inputs.items()}
        alone = prior.sample(6, 6, samples=[sample], batch_size=3, condition_inputs=own)
        assert torch.equal(alone[0], both[place])


@pytest.mark.parametrize("name", ["segmentation", "label", "boxes", "codes", "keypoints"])
def test_every_input_matters_and_can_be_left_out(name):
    prior, condition_inputs = PRIORS["learned"], random_condition_inputs(5, 5)
    left_out = {key: value for key, value in condition_inputs.items() if key != name}
    with_it, without, nothing = (
        prior.sample_with_log_probs(5, 5, count=2, condition_inputs=each).log_probabilities
        for each in (condition_inputs, left_out, None)
    )
    assert not torch.equal(with_it, without)
    assert not torch.equal(without, nothing)


def test_entries_that_follow_from_the_canvas_can_be_left_out():
    prior, condition_inputs = PRIORS["learned"], random_condition_inputs(5, 6)
    complete = {
        **condition_inputs,
        "known": condition_inputs["codes"] >= 0,
        "crop": torch.tensor([0.0, 0.0, 1.0, 1.0]),
        "place": torch.tensor([0, 0, 5, 6]),
    }
    elsewhere = {**complete, "place": torch.tensor([7, 3, 30, 30])}
    implied, whole, part = (
        prior.sample_with_log_probs(5, 6, count=2, condition_inputs=each).log_probabilities
        for each in (condition_inputs, complete, elsewhere)
    )
    assert torch.equal(implied, whole)
    assert not torch.equal(whole, part)


def test_labels_are_short_for_the_entry_label():
    prior = PRIORS["learned"]
    short = prior.sample(4, 4, count=2, labels=[0, 2])
    assert torch.equal(short, prior.sample(4, 4, count=2, condition_inputs={"label": [0, 2]}))


@pytest.mark.parametrize(
    ("condition_inputs", "message"),
    [
        ({"depth": torch.zeros(4, 4)}, "without 'depth'; its inputs are label"),
        ({"segmentation": torch.zeros(5, 5)}, "'segmentation' must be"),
        ({"segmentation": torch.zeros(3, 4, 4)}, "for 2 samples"),
        ({"segmentation": torch.full((4, 4), 5)}, "from -1 to 4"),
        ({"codes": torch.full((4, 4), 7)}, "Known codes"),
        ({"known": torch.ones(4, 4, dtype=torch.bool)}, "codes is missing"),
        ({"crop": torch.ones(4)}, "boxes is missing"),
        ({"boxes": torch.zeros(2, 3, 4)}, "'boxes' must be"),
        ({"keypoints": torch.zeros(3, 2)}, "'keypoints' must be"),
        ({"place": torch.tensor([0, 0, 3, 4])}, "a grid that holds it"),
        ({"label": torch.tensor([0, 1, 2])}, "for 2 samples"),
        ({"label": 3}, "Labels must be"),
    ],
)
def test_inputs_that_cannot_be_are_refused(condition_inputs, message):
    with pytest.raises(ConfigError, match=message):
        PRIORS["learned"].sample(4, 4, count=2, condition_inputs=condition_inputs)


def test_class_given_twice_is_refused():
    with pytest.raises(ConfigError, match="given twice"):
        PRIORS["learned"].sample(4, 4, labels=1, condition_inputs={"label": 1})


@pytest.mark.parametrize("preset", ["tiny", "tiny-modern"])
def test_sizes_of_a_preset_follow_from_the_conditions(preset):
    conditions = Conditions(EVERYTHING, 7)
    sizes = condition_sizes(preset, conditions, 4)
    model = make_model(preset_config(preset, **{**sizes, "num_layers": 1}))
    batch = {
        **random_condition_inputs(4, 4),
        "known": torch.ones(2, 4, 4, dtype=torch.bool),
        "crop": torch.tensor([[0.0, 0, 1, 1]]).repeat(2, 1),
        "place": torch.tensor([[0, 0, 4, 4]]).repeat(2, 1),
    }
    batch["codes"] = batch["codes"].clamp(min=0)
    assert model.code_logits(conditions.tokens(batch, 2), batch["codes"]).shape == (2, 4, 4, 7)
