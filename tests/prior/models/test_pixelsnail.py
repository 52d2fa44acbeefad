"""PixelSNAIL: preset sizes, and sampling against a reference without caches."""

import json

import pytest
import torch

from ops.config import ConfigError, from_json, to_json
from ops.windows import raster, window_of
from prior import (
    ClassLabel,
    Conditions,
    PixelSNAIL,
    Prior,
    Segmentation,
    load_prior,
    make_model,
    preset_config,
    save_prior,
)
from prior.models.pixelsnail import SnailConfig
from prior.models.presets import SNAIL_PRESETS
from prior.sampling.distributions import SamplingSettings, draw

INFO = {"fingerprint": "-", "codebook_size": 7, "downsample_factor": 8, "name": "none"}
CLASSES = Conditions([ClassLabel(num_classes=2)], 7)
GRIDS = Conditions([ClassLabel(num_classes=2), Segmentation(codebook_size=3)], 7)
ONLY_GRIDS = Conditions([Segmentation(codebook_size=3)], 7)


def random_snail(conditions, window=4):
    """A float64 model whose weights are so large that every code changes the next logits."""
    torch.manual_seed(0)
    config = SnailConfig(
        codebook_size=7,
        condition_vocab_size=conditions.vocab_size,
        condition_length=conditions.length,
        condition_grids=conditions.num_grids,
        window=window,
        num_residuals=1,
        num_heads=2,
        width=8,
        hidden=4,
    )
    model = PixelSNAIL(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def sample_slowly(prior, condition_inputs, size, choice, *, stride, seed, forced):
    """Reference: a whole forward of the window for each cell; open cells are read as code 0."""
    count = len(condition_inputs["label"])
    codes, numbers = forced.repeat(count, 1, 1), prior._row_uniforms(seed, range(count), size[1])
    model, conditions, side = prior.model, prior.conditions, prior.config.window
    for row, column in raster(*size):
        if codes[0, row, column] >= 0:
            continue
        window = window_of(row, column, *size, side, stride)
        visible = codes[:, *window.slices()].clamp(min=0)
        shape, offset = visible.shape[1:], window.offset_of(row, column)
        here = {
            **condition_inputs,
            "segmentation": condition_inputs["segmentation"][:, *window.slices()],
        }
        tokens = conditions.tokens(here, count, shape)
        logits = model.code_logits(tokens, visible).flatten(1, 2)[:, offset]
        null_tokens = conditions.null_tokens(count, shape)
        null_logits = model.code_logits(null_tokens, visible).flatten(1, 2)[:, offset]
        scale = choice.guidance_at(offset / shape.numel())
        guided = null_logits + scale * (logits - null_logits) if choice.guides else logits
        codes[:, row, column] = draw(guided, numbers(row)[:, column], choice).codes
    return codes


@torch.inference_mode()
@pytest.mark.parametrize("conditions", [CLASSES, GRIDS, ONLY_GRIDS])
@pytest.mark.parametrize(("size", "stride"), [((6, 7), 1), ((9, 6), 2), ((3, 6), 2), ((2, 3), 2)])
@pytest.mark.parametrize("guidance_scale", [1, 2.5])
def test_sampling_equals_the_reference_on_any_canvas(conditions, size, stride, guidance_scale):
    prior = Prior(random_snail(conditions), conditions, INFO)
    options = {"guidance_scale": guidance_scale, "guidance_schedule": "power-cosine", "top_k": 5}
    random = torch.Generator().manual_seed(3)
    forced = torch.full(size, -1)
    forced[1, 1:3] = 3
    segmentation = torch.randint(3, (2, *size), generator=random)
    condition_inputs = {"label": torch.tensor([0, 1]), "segmentation": segmentation}
    given = {name: condition_inputs[name] for name in conditions.entries}
    sampled = prior.sample(
        *size, count=2, condition_inputs=given, forced=forced, stride=stride, seed=5, **options
    )
    expected = sample_slowly(
        prior,
        condition_inputs,
        size,
        SamplingSettings(**options),
        stride=stride,
        seed=5,
        forced=forced,
    )
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize("preset", SNAIL_PRESETS)
@pytest.mark.parametrize("codebook_size", [512, 15360])
def test_presets_have_about_as_many_weights_as_the_gpts_of_the_same_name(preset, codebook_size):
    sizes = {"codebook_size": codebook_size, "condition_vocab_size": 1, "condition_length": 1}
    counts, in_blocks = [], []
    for name in (preset, preset.removesuffix("-snail")):
        with torch.device("meta"):
            model = make_model(preset_config(name, **sizes))
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
        in_blocks.append(sum(parameter.numel() for parameter in model.blocks.parameters()))
    assert counts[0] == pytest.approx(counts[1], rel=0.04)
    assert in_blocks[0] == pytest.approx(in_blocks[1], rel=0.1)


@pytest.mark.parametrize("preset", SNAIL_PRESETS)
def test_every_preset_round_trips_through_json(preset):
    sizes = {"codebook_size": 9, "condition_vocab_size": 1, "condition_length": 0}
    config = preset_config(preset, **sizes, condition_grids=2)
    assert from_json(SnailConfig, json.loads(json.dumps(to_json(config)))) == config
    assert config.sequence_length == 3 * 16**2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, found 0"),
        ({"condition_length": -1}, "condition_length must be at least 0, found -1"),
        ({"width": 20}, "multiple of 8; found 20"),
        ({"dropout": 1.0}, "dropout must be below 1"),
    ],
)
def test_invalid_configs_are_rejected(change, message):
    sizes = {"codebook_size": 9, "condition_vocab_size": 1, "condition_length": 1}
    with pytest.raises(ConfigError, match=message):
        SnailConfig(**sizes | change)


@torch.no_grad()
def test_initial_weights_predict_all_codes_alike():
    """All codes start about equally likely, however deep the network is."""
    sizes = {"codebook_size": 64, "condition_vocab_size": 1, "condition_length": 1}
    torch.manual_seed(0)
    model = make_model(preset_config("study-snail", **sizes, num_blocks=6))
    nll = model.nll(torch.full((4, 1), 64), torch.randint(64, (4, 16, 16)))
    assert float(nll.mean()) == pytest.approx(torch.tensor(64.0).log().item(), abs=0.1)


@torch.inference_mode()
def test_sampling_resumes_at_flushed_rows_bit_for_bit():
    model = random_snail(CLASSES)
    prior = Prior(model.float(), CLASSES, INFO)
    options = {"count": 2, "labels": [0, 1], "seed": 3, "stride": 2, "flush_every_rows": 3}
    whole = prior.sample(8, 7, **options)
    above = torch.where(torch.arange(8)[:, None] < 3, whole, -1)
    assert torch.equal(prior.sample(8, 7, forced=above, **options), whole)


@torch.inference_mode()
def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    prior = Prior(random_snail(GRIDS).float(), GRIDS, INFO)
    segmentation = torch.randint(3, (3, 5, 6), generator=torch.Generator().manual_seed(2))
    options = {"batch_size": 2, "seed": 3}
    labels = [0, 1, 1]
    together = prior.sample(
        5,
        6,
        samples=[0, 1, 2],
        labels=labels,
        condition_inputs={"segmentation": segmentation},
        **options,
    )
    for sample in range(3):
        condition_inputs = {"segmentation": segmentation[sample]}
        alone = prior.sample(
            5,
            6,
            samples=[sample],
            labels=labels[sample],
            condition_inputs=condition_inputs,
            **options,
        )
        assert torch.equal(alone[0], together[sample])


def test_a_prior_with_grid_conditions_only_trains_and_saves(tmp_path):
    model = random_snail(ONLY_GRIDS).float().train()
    codes, grids = torch.randint(7, (2, 4, 4)), torch.randint(3, (2, 4, 4))
    tokens = ONLY_GRIDS.tokens({"segmentation": grids}, 2, (4, 4))
    nll = model.nll(tokens, codes).mean()
    nll.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    save_prior(tmp_path, model, ONLY_GRIDS, INFO)
    again = load_prior(tmp_path).model
    assert torch.equal(again.nll(tokens, codes), model.eval().nll(tokens, codes))
