"""The contract of every architecture in ARCHITECTURES."""

import dataclasses

import pytest
import torch

from ops.config import ConfigError
from prior import (
    ClassLabel,
    Conditions,
    GPTConfig,
    Inpaint,
    Prior,
    Segmentation,
    condition_sizes,
    load_prior,
    make_model,
    preset_config,
    save_prior,
)
from prior.models.registry import ARCHITECTURES, architecture_name

CODES, WINDOW, LEVELS = 6, 4, (3, 2)
INFO = {"fingerprint": "-", "codebook_size": CODES, "downsample_factor": 8, "name": "none"}
SMALL = {
    "gpt": {"preset": "study", "num_layers": 2},
    "local": {"preset": "study-local", "num_layers": 2, "radius": 2},
    "snail": {"preset": "study-snail", "hidden": 4},
}
#: Each architecture with codes by themselves, and with codes by their levels.
VARIANTS = [*SMALL, *(f"{name}-levels" for name in SMALL)]
CLASSES = Conditions([ClassLabel(num_classes=2)], CODES)
GRIDS = Conditions(
    [ClassLabel(num_classes=2), Segmentation(codebook_size=3), Inpaint(codebook_size=CODES)], CODES
)
EVERY = pytest.mark.parametrize("name", VARIANTS)
SIZES = pytest.mark.parametrize("size", [(4, 4), (3, 4), (4, 1), (1, 3), (1, 1)])


def small_prior(name, conditions=CLASSES, large_weights=True):
    """A float64 prior; with large weights, every visible token clearly changes the logits."""
    torch.manual_seed(0)
    architecture, _, by_levels = name.partition("-")
    options, levels = dict(SMALL[architecture]), LEVELS if by_levels else ()
    sizes = condition_sizes(options["preset"], conditions, WINDOW, levels)
    model = make_model(preset_config(**options, **sizes, width=16, num_heads=2)).double()
    if large_weights:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return Prior(model.eval(), conditions, INFO)


def random_codes(*shape, most=CODES):
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(1))


def test_every_architecture_is_covered():
    assert set(SMALL) == set(ARCHITECTURES)


@EVERY
def test_models_have_the_attributes_that_trainers_and_samplers_use(name):
    prior = small_prior(name)
    model, config = prior.model, prior.model.config
    assert architecture_name(config) == name.partition("-")[0]
    assert len(model.blocks) > 1
    if not config.code_levels:
        assert model.head.weight.shape == (CODES, config.width)
        assert model.token_embedding.weight.shape[0] >= CODES + CLASSES.vocab_size
    codes, tokens = random_codes(2, 4, 4), CLASSES.tokens({"label": [0, 1]}, 2, (4, 4))
    logits = model.code_logits(tokens, codes)
    assert logits.shape == (2, 4, 4, CODES)
    nll = -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(model.nll(tokens, codes).double(), nll, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@EVERY
@SIZES
def test_logits_are_causal(name, size):
    model = small_prior(name).model
    codes = random_codes(1, *size)
    tokens = CLASSES.tokens({"label": [1]}, 1, size)
    before = model.code_logits(tokens, codes).flatten(1, 2)
    for number in range(codes.numel()):
        changed = codes.clone()
        changed.view(-1)[number] += 1
        changed %= CODES
        after = model.code_logits(tokens, changed).flatten(1, 2)
        assert torch.equal(after[:, : number + 1], before[:, : number + 1])
        if number + 1 < codes.numel():
            assert (after[:, number + 1 :] != before[:, number + 1 :]).any()


@torch.no_grad()
@EVERY
@SIZES
def test_log_probabilities_of_samples_are_those_of_the_model(name, size):
    prior = small_prior(name)
    drawn = prior.sample_with_log_probs(*size, count=3, labels=[0, 1, 0], seed=4)
    nll = prior.model.nll(CLASSES.tokens({"label": [0, 1, 0]}, 3, size), drawn.codes)
    torch.testing.assert_close(drawn.log_probabilities, -nll, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@EVERY
@SIZES
def test_every_cell_depends_on_grids_and_classes(name, size):
    prior = small_prior(name, GRIDS)
    codes = random_codes(1, *size)
    condition_inputs = {
        "label": torch.tensor([1]),
        "segmentation": random_codes(1, *size, most=3),
        "codes": codes,
        "known": torch.zeros(1, *size, dtype=torch.bool),
    }
    changes = {
        "label": torch.tensor([0]),
        "segmentation": (condition_inputs["segmentation"] + 1) % 3,
    }
    logits = [
        logits_of(prior, batch, codes)
        for batch in (condition_inputs, *(condition_inputs | {n: c} for n, c in changes.items()))
    ]
    for changed in logits[1:]:
        assert (changed != logits[0]).any(-1).all()


def logits_of(prior, condition_inputs, codes):
    """Logits of one canvas. A GPT's prefix holds grids of its window's size: edges are repeated."""
    tokens = GRIDS.tokens(condition_inputs, 1, codes.shape[1:])
    if isinstance(prior.config, GPTConfig):
        rows, columns = codes.shape[1:]
        grids = tokens[:, GRIDS.length :].unflatten(1, (GRIDS.num_grids, rows, columns))
        rows, columns = (torch.arange(WINDOW).clamp(max=side - 1) for side in (rows, columns))
        grids = grids[:, :, rows[:, None], columns]
        tokens = torch.cat([tokens[:, : GRIDS.length], grids.flatten(1)], dim=1)
    return prior.model.code_logits(tokens, codes)


@torch.no_grad()
@EVERY
@SIZES
def test_log_probabilities_of_conditional_samples_are_those_of_the_model(name, size):
    prior, codes = small_prior(name, GRIDS), random_codes(1, *size)
    segmentation = random_codes(*size, most=3)
    condition_inputs = {
        "segmentation": segmentation,
        "codes": torch.where(codes[0] > 3, codes[0], -1),
    }
    drawn = prior.sample_with_log_probs(
        *size, count=1, labels=1, condition_inputs=condition_inputs, seed=4
    )
    batch = {
        "label": torch.tensor([1]),
        "segmentation": segmentation[None],
        "codes": condition_inputs["codes"][None],
        "known": condition_inputs["codes"][None] >= 0,
    }
    logits = logits_of(prior, batch, drawn.codes)
    logs = logits.log_softmax(-1).gather(-1, drawn.codes[..., None])[..., 0]
    torch.testing.assert_close(drawn.log_probabilities.double(), logs, rtol=1e-4, atol=1e-5)


@EVERY
def test_a_saved_and_loaded_prior_samples_the_same_codes(name, tmp_path):
    prior = small_prior(name)
    prior.model.float()
    save_prior(tmp_path, prior.model, prior.conditions, INFO)
    again = load_prior(tmp_path)
    assert again.config == prior.config
    assert torch.equal(again.sample(4, 4, labels=1, seed=2), prior.sample(4, 4, labels=1, seed=2))


@EVERY
def test_training_learns_a_rule(name):
    """Each code follows from the code at its left, the first of a row from the one above."""
    model = small_prior(name, large_weights=False).model.train().float()
    first = random_codes(32, 1, 1)
    rows, columns = torch.arange(4)[:, None], torch.arange(4)
    codes = (first + 2 * rows + 3 * columns) % CODES
    tokens = CLASSES.tokens({"label": [0] * 32}, 32, (4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model.nll(tokens, codes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nll = model.nll(tokens, codes).flatten(1)
    assert nll[:, 1:].mean() < 0.3
    assert nll[:, 0].mean() > 1.5  # the first code is random: log 6 is 1.79


@EVERY
def test_recomputed_activations_give_the_same_gradients(name):
    model = small_prior(name).model.train()
    codes, tokens = random_codes(2, 4, 4), CLASSES.tokens({"label": [0, 1]}, 2, (4, 4))
    gradients = []
    for recompute in (False, True):
        model.recompute_activations = recompute
        model.zero_grad()
        model.nll(tokens, codes).mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@EVERY
def test_every_weight_has_a_gradient(name):
    prior = small_prior(name, GRIDS)
    condition_inputs = {
        "label": torch.tensor([1]),
        "segmentation": random_codes(1, 4, 4, most=3),
        "codes": random_codes(1, 4, 4),
        "known": torch.zeros(1, 4, 4, dtype=torch.bool),
    }
    logits_of(prior, condition_inputs, random_codes(1, 4, 4)).square().sum().backward()
    unused = [n for n, p in prior.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@pytest.mark.parametrize("name", ["gpt", "snail"])
def test_a_window_larger_than_the_trained_one_is_rejected(name):
    model = small_prior(name).model
    with pytest.raises(ConfigError, match="4x5 codes does not fit the prior's window of 4x4"):
        model.code_logits(CLASSES.null_tokens(1, (4, 5)), random_codes(1, 4, 5))


@EVERY
def test_an_unknown_field_of_a_preset_is_named(name):
    config = small_prior(name).config
    preset = SMALL[name.partition("-")[0]]["preset"]
    with pytest.raises(ConfigError, match=f"preset '{preset}' has no wings"):
        preset_config(preset, wings=2, **dataclasses.asdict(config))
